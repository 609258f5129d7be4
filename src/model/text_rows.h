#pragma once
// Which text sits in which row while many are written at once: a row whose text is over takes the next one. Knows no
// tensor; sample_texts.h runs the model.
//
// All rows write keys and values into the same slot of their cache in each step; slots are used in a circle. What a row
// sees of it is a list of slots, so that texts of any age lie beside each other.

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace outrider::model {

// A part of a text that the model writes: up to and with one of `end_ids`. `tail` is put behind it, as a chat template
// does between two turns; behind the last turn nothing is.
struct Turn {
  std::vector<int64_t> end_ids, tail;
  double temperature = 0;  // of the draws in this turn; 0: that of the sampling
};

struct TextPlan {
  std::vector<std::vector<int64_t>> prompts;  // text n begins with prompts[n % size]; none is empty
  std::vector<Turn> turns;                    // at least one; the last one's end is the end of the text
  int64_t length = 512;                       // tokens of a text at most, prompt and tails included
  int64_t texts = 0;                          // numbers 0 to texts - 1
  uint64_t seed = 0;                          // of the draws
};

struct SampledText {
  int64_t number = 0;
  int64_t turns = 0;         // that were ended; all of them when the text is complete
  std::vector<int64_t> ids;  // prompt and tails included
};

class TextRows {
 public:
  // `window`: steps between two looks at what was made. Programmer's errors are checked.
  TextRows(TextPlan plan, int64_t rows, int64_t window);

  int64_t rows() const { return static_cast<int64_t>(rows_.size()); }
  int64_t window() const { return window_; }
  // Slots of the cache: a text and what its row makes past the end of a turn fit. A multiple of 16.
  int64_t slots() const { return slots_; }
  bool Idle() const;  // every text is over

  // What the next steps read; [w][b] in the order of steps.
  struct Inputs {
    std::vector<int64_t> ids, positions;  // [rows], of the first step; positions count up by one a step
    std::vector<uint8_t> seen;            // [rows, slots]: before the first step; each step then sees its own slot
    std::vector<int64_t> forced;          // [window, rows]: the id that comes next, -1 where it is drawn
    std::vector<float> uniform;           // [window, rows] in [0, 1), by seed, text and place in the text
    std::vector<float> temperatures;      // [rows]: Turn::temperature
    int64_t first_slot = 0;               // of the first step; the next steps take the next slots
    int64_t used_slots = 0;               // slots below this have ever been written, those of these steps included
  };
  Inputs Next();
  // `made` [window, rows]: what came next in each step. Returns the texts that are over.
  std::vector<SampledText> Take(std::span<const int64_t> made);

 private:
  struct Row {
    std::optional<SampledText> text;
    std::vector<int64_t> queue;  // ids that come next, last first
    int64_t consumed = 0;        // ids whose keys and values lie in the cache
    std::vector<uint8_t> seen;   // [slots]
  };
  void Start(Row& row);
  // Adds `id` to the text; true when the text is over.
  bool Add(Row& row, int64_t id);

  TextPlan plan_;
  int64_t window_ = 1, slots_ = 0;
  int64_t step_ = 0, started_ = 0;
  std::vector<Row> rows_;
};

}  // namespace outrider::model
