// Random rows of mapped files into one batch, on several threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "store/convert.h"
#include "store/file.h"

namespace sslfast::store {

// A run of rows: `rows` of them from byte `offset` of a file on.
struct Part {
  std::shared_ptr<File> file;
  std::size_t rows, offset;
};

struct Request {
  const std::int64_t* rows;
  std::size_t count;
  unsigned char* out;      // count rows without gaps
  bool as_stored;          // copied as they are; else as float32
  const float* mean;       // null, or what is subtracted
  const float* deviation;  // and what is divided by then
  bool finite;             // refuse NaN and infinity
  bool read_ahead;         // the files may not be in memory: ask for the rows' pages before they are touched
  int threads;
};

enum class Outcome { done, no_such_row, damaged, not_finite };

struct Result {
  Outcome outcome;
  std::size_t where, block;  // position in `rows`; damaged: part and block
};

class Rows {
 public:
  Rows(std::vector<Part> parts, std::size_t features, Kind kind);
  std::size_t count() const { return ends_.empty() ? 0 : ends_.back(); }
  std::size_t features() const { return features_; }
  Kind kind() const { return kind_; }
  // What is written to `out` where the outcome is not `done` is of no use. No byte of a damaged block is ever in it.
  Result gather(const Request& request) const;

 private:
  std::size_t part_of(std::size_t row) const;
  std::size_t start_of(std::size_t part, std::size_t row, std::size_t width) const;
  Result check(const Request& request, std::size_t width) const;

  std::vector<Part> parts_;
  std::vector<std::size_t> ends_;
  std::size_t features_;
  Kind kind_;
};

}  // namespace sslfast::store
