#include "moe/report.h"

#include <nlohmann/json.hpp>

namespace outrider::moe {

using nlohmann::json;

std::string ToJson(const ExpertFacts& facts) {
  json layers = json::array();
  for (size_t l = 0; l < facts.layers.size(); ++l) {
    const LayerCounts& c = facts.layers[l];
    layers.push_back({{"permanent", c.permanent},
                      {"union", c.united},
                      {"dead", c.dead},
                      {"live_signatures", c.live_signatures},
                      {"active", c.active},
                      {"delta", facts.delta[l]}});
  }
  const json out = {{"layers", layers},
                    {"rise", facts.rise},
                    {"coverage", facts.coverage},
                    {"reseeded", facts.reseeded},
                    {"statistic", facts.statistic},
                    {"candidates", facts.candidates},
                    {"hash", std::to_string(facts.hash)}};
  return out.dump(1);
}

namespace {

json Routes(const RouteStats& routes) {
  return {{"load", routes.load},
          {"stay_rate", routes.StayRate()},
          {"entropy", routes.Entropy()},
          {"run_lengths", routes.run_lengths}};
}

}  // namespace

std::string ToJson(const std::vector<DomainLoss>& domains) {
  json out = json::object();
  for (const DomainLoss& d : domains) {
    json documents = json::array();
    for (const DocumentLoss& doc : d.documents) documents.push_back({doc.document, doc.tokens, doc.nats});
    json& entry = out[d.domain];
    entry = {{"tokens", d.tokens}, {"nats", d.nats}, {"documents", documents}};
    if (d.routes.pairs > 0) entry.update(Routes(d.routes));
    if (d.layers.empty()) continue;
    double stay_rate = 0, entropy = 0;
    for (const RouteStats& layer : d.layers) {
      entry["layers"].push_back(Routes(layer));
      stay_rate += layer.StayRate() / static_cast<double>(d.layers.size());
      entropy += layer.Entropy() / static_cast<double>(d.layers.size());
    }
    entry["stay_rate"] = stay_rate;
    entry["entropy"] = entropy;
  }
  return out.dump(1);
}

std::string ToJson(const Row& row) {
  json out = {{"lane", row.lane},
              {"covered_share", row.CoveredShare()},
              {"events", row.events},
              {"fetches", row.fetches},
              {"host_us", row.host_us},
              {"host_wait_us", row.host_wait_us},
              {"runner_busy_us", row.runner_busy_us}};
  if (!row.note.empty()) out["note"] = row.note;
  if (!row.flushes.empty()) out["flushes"] = row.flushes;
  if (!row.inline_ops.empty()) out["inline_ops"] = row.inline_ops;
  for (const DivergenceRow& d : row.divergences) {
    out["divergences"].push_back(
        {{"event", d.event}, {"code", d.code}, {"expected", d.expected}, {"got", d.got}, {"field", d.field}});
  }
  return out.dump();
}

}  // namespace outrider::moe
