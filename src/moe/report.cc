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
                    {"coverage", facts.coverage},
                    {"reseeded", facts.reseeded},
                    {"statistic", facts.statistic},
                    {"candidates", facts.candidates},
                    {"hash", std::to_string(facts.hash)}};
  return out.dump(1);
}

std::string ToJson(const std::vector<DomainLoss>& domains) {
  json out = json::object();
  for (const DomainLoss& d : domains) {
    json documents = json::array();
    for (const DocumentLoss& doc : d.documents) documents.push_back({doc.document, doc.tokens, doc.nats});
    json& entry = out[d.domain];
    entry = {{"tokens", d.tokens}, {"nats", d.nats}, {"documents", documents}};
    if (d.routes.pairs > 0) {
      entry["load"] = d.routes.load;
      entry["stay_rate"] = d.routes.StayRate();
      entry["entropy"] = d.routes.Entropy();
      entry["run_lengths"] = d.routes.run_lengths;
    }
  }
  return out.dump(1);
}

}  // namespace outrider::moe
