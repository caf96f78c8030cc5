#include "store/gather.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <utility>

#include "store/workers.h"

namespace sslfast::store {
namespace {

constexpr std::size_t part_bytes = 128 * 1024;    // of a thread's turn: long beside what a turn costs
constexpr std::size_t alone_bytes = 1024 * 1024;  // below this another thread takes longer to wake up than it saves
constexpr std::size_t prefetch_bytes = 4096, most_ahead = 16;
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

std::size_t Rows::part_of(std::size_t row) const {
  if (ends_.size() > 16) return std::upper_bound(ends_.begin(), ends_.end(), row) - ends_.begin();
  std::size_t part = 0;  // counted, because nothing predicts the branches of a search for random rows
  for (const std::size_t end : ends_) part += static_cast<std::size_t>(row >= end);
  return part;
}

std::size_t Rows::start_of(std::size_t part, std::size_t row, std::size_t width) const {
  return parts_[part].offset + (row - (ends_[part] - parts_[part].rows)) * width;
}

// Compares the blocks that hold these rows and that nobody has touched yet.
Result Rows::check(const Request& request, std::size_t width) const {
  std::vector<std::pair<std::size_t, std::size_t>> untouched;
  for (std::size_t i = 0; i < request.count; ++i) {
    const auto row = static_cast<std::size_t>(request.rows[i]);
    const std::size_t at = part_of(row), start = start_of(at, row, width);
    const File& file = *parts_[at].file;
    for (std::size_t block = file.block_of(start); block <= file.block_of(start + width - 1); ++block) {
      if (!file.verified(block)) untouched.emplace_back(at, block);
    }
    if (request.read_ahead) file.read_ahead(start, width);
  }
  if (untouched.empty()) return {Outcome::done, 0, 0};
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
  return {Outcome::done, 0, 0};
}

Result Rows::gather(const Request& request) const {
  const std::size_t width = features_ * item_bytes(kind_);
  for (std::size_t i = 0; i < request.count; ++i) {
    if (request.rows[i] < 0 || static_cast<std::size_t>(request.rows[i]) >= count()) {
      return {Outcome::no_such_row, i, 0};
    }
  }
  const bool whole = std::all_of(parts_.begin(), parts_.end(), [](const Part& part) { return part.file->whole(); });
  if (!whole || request.read_ahead) {
    const Result checked = check(request, width);
    if (checked.outcome != Outcome::done) return checked;
  }

  const auto source = [&](std::size_t i) {
    const auto row = static_cast<std::size_t>(request.rows[i]);
    const std::size_t at = part_of(row);
    return parts_[at].file->data() + start_of(at, row, width);
  };
  const std::size_t out_width = request.as_stored ? width : features_ * sizeof(float);
  const std::size_t ahead = std::clamp<std::size_t>(prefetch_bytes / width, 1, most_ahead);
  const int threads = request.count * out_width < alone_bytes ? 1 : request.threads;
  std::atomic<std::size_t> bad{none};
  const std::size_t grain = std::max<std::size_t>(ahead, part_bytes / out_width);
  parallel(request.count, grain, threads, [&](std::size_t first, std::size_t last) {
    // Addresses are found as many rows ahead of their use as their first bytes are asked for.
    const unsigned char* coming[most_ahead];
    const auto ask = [&](std::size_t i) {
      const unsigned char* const next = coming[i % ahead] = source(i);
      // The processor follows a row by itself once it has begun.
      for (std::size_t byte = 0; byte < std::min<std::size_t>(width, 1024); byte += 64) __builtin_prefetch(next + byte);
    };
    for (std::size_t i = first; i < std::min(first + ahead, last); ++i) ask(i);
    for (std::size_t i = first; i < last; ++i) {
      const unsigned char* const row = coming[i % ahead];
      if (i + ahead < last) ask(i + ahead);
      unsigned char* const out = request.out + i * out_width;
      if (request.as_stored) {
        std::memcpy(out, row, width);
        continue;
      }
      float* const values = reinterpret_cast<float*>(out);
      to_float(kind_, row, values, features_);
      if (request.finite && !all_finite(values, features_)) lower(bad, i);
      if (request.mean != nullptr) standardise(values, request.mean, request.deviation, features_);
    }
  });
  if (bad != none) return {Outcome::not_finite, bad, 0};
  return {Outcome::done, 0, 0};
}

}  // namespace sslfast::store
