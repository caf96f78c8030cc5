#pragma once
// What the Self-Classifier keeps of some classes of all views, for sources that are compiled once per capability.
#include <cstdint>

#include "sslfast/vector.h"

namespace sslfast {
namespace {

template <typename T>
using V = typename Vector<T>::type;

template <typename T>
constexpr int64_t step = Vector<T>::lanes;

// Some classes of some rows in every view, small enough for the nearest cache: T, l = log(p + eps) and p / (p + eps),
// and the sums of T and l over the global and over the local views.
template <int count, typename T>
struct Tile {
  static constexpr int64_t most_columns = 8 * step<T>;
  int64_t columns;
  int64_t size;  // count x columns

  T* target;  // views x count x columns, as the next two
  T* log;
  T* share;
  T* global_target;  // count x columns, as the next three
  T* global_log;
  T* local_target;
  T* local_log;

  Tile(T* memory, int64_t views, int64_t width)
      : columns(width < most_columns ? width : most_columns),
        size(count * columns),
        target(memory),
        log(target + views * size),
        share(log + views * size),
        global_target(share + views * size),
        global_log(global_target + size),
        local_target(global_log + size),
        local_log(local_target + size) {}

  static constexpr int64_t numbers(int64_t views) { return (3 * views + 4) * count * most_columns; }

  // From p in `share`, l and p / (p + eps). A loop of its own: behind the exponentials, their latencies would add up.
  void take_logarithms(int64_t views, T eps) {
    for (int64_t at = 0; at < views * size; at += step<T>) {
      const V<T> p = load(share + at);
      const V<T> sum = p + eps;
      store(log + at, logarithm(sum));
      store(share + at, p / sum);
    }
  }

  void add_up(int64_t views, int64_t globals) {
    add_range(0, globals, global_target, global_log);
    add_range(globals, views, local_target, local_log);
  }

  // Sums over the views that pair with `view`. A sum that leaves one global view out is built without it: subtracting
  // it from the whole would cancel.
  inline void others(int64_t view, int64_t globals, int64_t at, V<T>& sum_target, V<T>& sum_log) const {
    if (view >= globals) {
      sum_target = load(global_target + at);
      sum_log = load(global_log + at);
      return;
    }
    sum_target = load(local_target + at);
    sum_log = load(local_log + at);
    for (int64_t other = 0; other < globals; ++other) {
      if (other != view) {
        sum_target += load(target + other * size + at);
        sum_log += load(log + other * size + at);
      }
    }
  }

 private:
  void add_range(int64_t first, int64_t last, T* targets, T* logs) {
    for (int64_t at = 0; at < size; at += step<T>) {
      V<T> sum_target{}, sum_log{};
      for (int64_t view = first; view < last; ++view) {
        sum_target += load(target + view * size + at);
        sum_log += load(log + view * size + at);
      }
      store(targets + at, sum_target);
      store(logs + at, sum_log);
    }
  }
};

}  // namespace
}  // namespace sslfast
