#include "store/gather.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <utility>

#include "store/workers.h"

namespace sslfast::store {
namespace {

constexpr std::size_t part_bytes = 128 * 1024;  // of a thread's turn: long beside what a turn costs
constexpr std::size_t none = std::numeric_limits<std::size_t>::max();

void lower(std::atomic<std::size_t>& least, std::size_t value) {
  std::size_t seen = least.load();
  while (value < seen && !least.compare_exchange_weak(seen, value)) {
  }
}

}  // namespace

Rows::Rows(std::vector<Part> parts, std::size_t features, Kind kind)
    : parts_(std::move(parts)), features_(features), kind_(kind) {
  std::size_t end = 0;
  for (const Part& part : parts_) ends_.push_back(end += part.rows);
}

Result Rows::gather(const Request& request) const {
  const std::size_t width = features_ * item_bytes(kind_);
  std::vector<const unsigned char*> sources(request.count);
  std::vector<std::pair<std::size_t, std::size_t>> untouched;
  for (std::size_t i = 0; i < request.count; ++i) {
    const std::int64_t row = request.rows[i];
    if (row < 0 || static_cast<std::size_t>(row) >= count()) return {Outcome::no_such_row, i, 0};
    const auto number = static_cast<std::size_t>(row);
    const std::size_t at = std::upper_bound(ends_.begin(), ends_.end(), number) - ends_.begin();
    const Part& part = parts_[at];
    const std::size_t start = part.offset + (number - (ends_[at] - part.rows)) * width;
    sources[i] = part.file->data() + start;
    const std::size_t block_bytes = part.file->block_bytes();
    for (std::size_t block = start / block_bytes; block <= (start + width - 1) / block_bytes; ++block) {
      if (!part.file->verified(block)) untouched.emplace_back(at, block);
    }
    if (request.read_ahead) part.file->read_ahead(start, width);
  }

  if (!untouched.empty()) {
    std::sort(untouched.begin(), untouched.end());
    untouched.erase(std::unique(untouched.begin(), untouched.end()), untouched.end());
    std::atomic<std::size_t> damaged{none};
    parallel(untouched.size(), 1, request.threads, [&](std::size_t first, std::size_t last) {
      for (std::size_t i = first; i < last; ++i) {
        File& file = *parts_[untouched[i].first].file;
        if (i + 4 < untouched.size()) {
          const File& next = *parts_[untouched[i + 4].first].file;
          const std::size_t start = untouched[i + 4].second * next.block_bytes();
          next.read_ahead(start, std::min(next.block_bytes(), next.size() - start));
        }
        if (!file.verify(untouched[i].second)) lower(damaged, i);
      }
    });
    if (damaged != none) return {Outcome::damaged, untouched[damaged].first, untouched[damaged].second};
  }

  const std::size_t out_width = request.as_stored ? width : features_ * sizeof(float);
  std::atomic<std::size_t> bad{none};
  const std::size_t grain = std::max<std::size_t>(1, part_bytes / out_width);
  parallel(request.count, grain, request.threads, [&](std::size_t first, std::size_t last) {
    for (std::size_t i = first; i < last; ++i) {
      unsigned char* const out = request.out + i * out_width;
      if (i + 1 < last) {
        // The processor follows a row by itself once it has begun.
        for (std::size_t byte = 0; byte < std::min<std::size_t>(width, 1024); byte += 64) {
          __builtin_prefetch(sources[i + 1] + byte);
        }
      }
      if (request.as_stored) {
        std::memcpy(out, sources[i], width);
        continue;
      }
      float* const values = reinterpret_cast<float*>(out);
      to_float(kind_, sources[i], values, features_);
      if (request.finite && !all_finite(values, features_)) lower(bad, i);
      if (request.mean != nullptr) standardise(values, request.mean, request.deviation, features_);
    }
  });
  if (bad != none) return {Outcome::not_finite, bad, 0};
  return {Outcome::done, 0, 0};
}

}  // namespace sslfast::store
