#pragma once
// Pools of 3 x 3 of planes whose images lie side by side.
#include "mixed_edge.h"
#include "sslfast/vector.h"

namespace sslfast {
namespace {

inline int64_t not_below(int64_t value, int64_t least) { return value < least ? least : value; }
inline int64_t not_above(int64_t value, int64_t most) { return value > most ? most : value; }

// The larger one; NaN where either is.
template <typename V>
inline V larger(V best, V next) {
  return (next > best) | (next != next) ? next : best;
}

// How many of the three taps around `at` lie within `count`.
inline int64_t inside(int64_t at, int64_t count) { return not_above(at + 1, count - 1) - not_below(at - 1, 0) + 1; }

template <typename T>
void pools(const EdgePools<T>& pools) {
  constexpr int64_t L = edge_lanes<T>;
  const int64_t rows = pools.rows, columns = pools.columns, stride = pools.stride;
  const int64_t out_rows = (rows + stride - 1) / stride, out_columns = (columns + stride - 1) / stride;
  T *sums = pools.scratch, *maxima = pools.scratch + columns * L;
  for (int64_t y = 0; y < out_rows; ++y) {
    const int64_t top = not_below(stride * y - 1, 0), bottom = not_above(stride * y + 1, rows - 1);
    for (int64_t lane = 0; lane < L; lane += Vector<T>::lanes) {
      for (int64_t x = 0; x < columns; ++x) {
        const T* from = pools.x + (top * columns + x) * L + lane;
        auto sum = load(from), best = sum;
        for (int64_t tap = top + 1; tap <= bottom; ++tap) {
          const auto next = load(from += columns * L);
          sum += next;
          best = larger(best, next);
        }
        store(sums + x * L + lane, sum);
        store(maxima + x * L + lane, best);
      }
      for (int64_t x = 0; x < out_columns; ++x) {
        const int64_t first = not_below(stride * x - 1, 0), last = not_above(stride * x + 1, columns - 1);
        auto sum = load(sums + first * L + lane), best = load(maxima + first * L + lane);
        for (int64_t tap = first + 1; tap <= last; ++tap) {
          sum += load(sums + tap * L + lane);
          best = larger(best, load(maxima + tap * L + lane));
        }
        const int64_t to = (y * out_columns + x) * L + lane;
        const T share = T(1) / static_cast<T>((bottom - top + 1) * (last - first + 1));
        if (pools.average) store(pools.average + to, sum * share);
        if (pools.largest) store(pools.largest + to, best);
      }
    }
  }
}

template <typename T>
inline void largest_backward(const EdgePoolsBackward<T>& pools, int64_t y, int64_t out_columns, int64_t lane) {
  using V = typename Vector<T>::type;
  constexpr int64_t L = edge_lanes<T>;
  const int64_t rows = pools.rows, columns = pools.columns, stride = pools.stride;
  const int64_t top = not_below(stride * y - 1, 0), bottom = not_above(stride * y + 1, rows - 1);
  const V of_grad = splat(pools.largest_factors[0]), constant = splat(pools.largest_factors[1]),
          of_value = splat(pools.largest_factors[2]);
  for (int64_t x = 0; x < out_columns; ++x) {
    const int64_t first = not_below(stride * x - 1, 0), last = not_above(stride * x + 1, columns - 1);
    const int64_t at = (y * out_columns + x) * L + lane;
    const V best = load(pools.largest + at);
    // What is left to give: the first tap that equals the maximum takes it.
    V rest = of_grad * load(pools.grad + at) + constant + of_value * best;
    for (int64_t i = top; i <= bottom; ++i) {
      for (int64_t j = first; j <= last; ++j) {
        const int64_t tap = (i * columns + j) * L + lane;
        const auto takes = load(pools.x + tap) == best;
        store(pools.gx + tap, load(pools.gx + tap) + (takes ? rest : V{}));
        rest = takes ? V{} : rest;
      }
    }
  }
}

template <typename T>
inline void average_backward(const EdgePoolsBackward<T>& pools, int64_t y, int64_t out_columns, int64_t lane) {
  using V = typename Vector<T>::type;
  constexpr int64_t L = edge_lanes<T>;
  const int64_t rows = pools.rows, columns = pools.columns, stride = pools.stride;
  const int64_t top = not_below(stride * y - 1, 0), bottom = not_above(stride * y + 1, rows - 1);
  const V of_grad = splat(pools.average_factors[0]), constant = splat(pools.average_factors[1]),
          of_value = splat(pools.average_factors[2]);
  for (int64_t x = 0; x < columns; ++x) store(pools.scratch + x * L + lane, V{});
  for (int64_t x = 0; x < out_columns; ++x) {
    const int64_t first = not_below(stride * x - 1, 0), last = not_above(stride * x + 1, columns - 1);
    const int64_t at = (y * out_columns + x) * L + lane;
    const T share = T(1) / static_cast<T>((bottom - top + 1) * (last - first + 1));
    const V one = (of_grad * load(pools.grad + at) + constant + of_value * load(pools.average + at)) * share;
    for (int64_t j = first; j <= last; ++j) {
      T* to = pools.scratch + j * L + lane;
      store(to, load(to) + one);
    }
  }
  for (int64_t i = top; i <= bottom; ++i) {
    for (int64_t x = 0; x < columns; ++x) {
      T* to = pools.gx + (i * columns + x) * L + lane;
      store(to, load(to) + load(pools.scratch + x * L + lane));
    }
  }
}

template <typename T>
void pools_backward(const EdgePoolsBackward<T>& pools) {
  const int64_t stride = pools.stride;
  const int64_t out_rows = (pools.rows + stride - 1) / stride, out_columns = (pools.columns + stride - 1) / stride;
  for (int64_t y = 0; y < out_rows; ++y) {
    for (int64_t lane = 0; lane < edge_lanes<T>; lane += Vector<T>::lanes) {
      if (pools.largest) largest_backward(pools, y, out_columns, lane);
      if (pools.average) average_backward(pools, y, out_columns, lane);
    }
  }
}

// Largest of each 2 x 2 of a plane of one image.
template <typename T>
void halve(const T* x, int64_t rows, int64_t columns, T* to) {
  for (int64_t y = 0; y < rows / 2; ++y) {
    const T* top = x + 2 * y * columns;
    const T* bottom = top + columns;
    for (int64_t i = 0; i < columns / 2; ++i) {
      const T b = top[2 * i + 1], c = bottom[2 * i], d = bottom[2 * i + 1];
      T best = top[2 * i];
      best = b > best || b != b ? b : best;
      best = c > best || c != c ? c : best;
      to[y * (columns / 2) + i] = d > best || d != d ? d : best;
    }
  }
}

// The first of the largest takes the gradient, as in PyTorch the last NaN does.
template <typename T>
void halve_backward(const T* grad, const T* x, int64_t rows, int64_t columns, T* to) {
  for (int64_t y = 0; y < rows / 2; ++y) {
    const T* top = x + 2 * y * columns;
    const T* bottom = top + columns;
    T* to_top = to + 2 * y * columns;
    T* to_bottom = to_top + columns;
    for (int64_t i = 0; i < columns / 2; ++i) {
      const T a = top[2 * i], b = top[2 * i + 1], c = bottom[2 * i], d = bottom[2 * i + 1];
      const T g = grad[y * (columns / 2) + i];
      const bool second = b > a || b != b;
      const T upper = second ? b : a;
      const bool third = c > upper || c != c;
      const T three = third ? c : upper;
      const bool fourth = d > three || d != d;
      to_top[2 * i] = second || third || fourth ? 0 : g;
      to_top[2 * i + 1] = second && !third && !fourth ? g : 0;
      to_bottom[2 * i] = third && !fourth ? g : 0;
      to_bottom[2 * i + 1] = fourth ? g : 0;
    }
  }
}

}  // namespace
}  // namespace sslfast
