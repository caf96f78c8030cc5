#pragma once
// Pools of 3 x 3 of planes whose images lie side by side.
#include "mixed_edge.h"
#include "sslfast/transpose.h"
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

// Stride 1: first, for every output, which tap takes its gradient, and how much; then every input collects from the
// outputs around it. Scattered, each addition would wait for the one before.
template <typename T, bool of_largest, bool of_average>
void collect_backward(const EdgePoolsBackward<T>& pools) {
  using V = typename Vector<T>::type;
  constexpr int64_t L = edge_lanes<T>;
  const int64_t rows = pools.rows, columns = pools.columns, pitch = columns + 2, plane = (rows + 2) * pitch * L;
  T *which = pools.scratch, *given = which + plane, *spread = given + plane;
  const auto clear = [&](int64_t piece) {
    for (int64_t i = piece * L; i < (piece + 1) * L; ++i) {
      which[i] = -1;
      given[i] = spread[i] = 0;
    }
  };
  for (int64_t x = 0; x < pitch; ++x) clear(x), clear((rows + 1) * pitch + x);
  for (int64_t y = 1; y <= rows; ++y) clear(y * pitch), clear(y * pitch + pitch - 1);
  const V l[3] = {splat(pools.largest_factors[0]), splat(pools.largest_factors[1]), splat(pools.largest_factors[2])};
  const V a[3] = {splat(pools.average_factors[0]), splat(pools.average_factors[1]), splat(pools.average_factors[2])};
  for (int64_t y = 0; y < rows; ++y) {
    const bool middle = y > 0 && y + 1 < rows;
    for (int64_t lane = 0; lane < L; lane += Vector<T>::lanes) {
      for (int64_t x = 0; x < columns; ++x) {
        const int64_t at = (y * columns + x) * L + lane, framed = ((y + 1) * pitch + x + 1) * L + lane;
        const V grad = load(pools.grad + at);
        if constexpr (of_largest) {
          const V best = load(pools.largest + at);
          V tap = splat(T(-1));
          if (middle && x > 0 && x + 1 < columns) {
#pragma GCC unroll 9
            for (int t = 8; t >= 0; --t) {
              tap = load(pools.x + at + ((t / 3 - 1) * columns + t % 3 - 1) * L) == best ? splat(T(t)) : tap;
            }
          } else {
            for (int64_t t = 8; t >= 0; --t) {
              const int64_t i = y + t / 3 - 1, j = x + t % 3 - 1;
              if (i < 0 || i >= rows || j < 0 || j >= columns) continue;
              tap = load(pools.x + (i * columns + j) * L + lane) == best ? splat(static_cast<T>(t)) : tap;
            }
          }
          store(which + framed, tap);
          store(given + framed, l[0] * grad + l[1] + l[2] * best);
        }
        if constexpr (of_average) {
          const T share = T(1) / static_cast<T>(inside(y, rows) * inside(x, columns));
          store(spread + framed, (a[0] * grad + a[1] + a[2] * load(pools.average + at)) * share);
        }
      }
    }
  }
  for (int64_t y = 0; y < rows; ++y) {
    for (int64_t lane = 0; lane < L; lane += Vector<T>::lanes) {
      const auto column = [&](int64_t x) {
        const T* from = spread + (y * pitch + x) * L + lane;
        return load(from) + load(from + pitch * L) + load(from + 2 * pitch * L);
      };
      V before{}, here{};
      if constexpr (of_average) before = column(0), here = column(1);
      for (int64_t x = 0; x < columns; ++x) {
        T* to = pools.gx + (y * columns + x) * L + lane;
        V total = load(to);
        if constexpr (of_average) {
          const V after = column(x + 2);
          total += (before + here) + after;
          before = here;
          here = after;
        }
        if constexpr (of_largest) {
          V part[3] = {};
#pragma GCC unroll 9
          for (int t = 0; t < 9; ++t) {
            // The output whose tap t is here.
            const int64_t from = ((y + 2 - t / 3) * pitch + x + 2 - t % 3) * L + lane;
            part[t % 3] += load(which + from) == splat(T(t)) ? load(given + from) : V{};
          }
          total += (part[0] + part[1]) + part[2];
        }
        store(to, total);
      }
    }
  }
}

template <typename T>
void pools_backward(const EdgePoolsBackward<T>& pools) {
  const int64_t stride = pools.stride;
  if (stride == 1) {
    if (pools.largest && pools.average) return collect_backward<T, true, true>(pools);
    return pools.largest ? collect_backward<T, true, false>(pools) : collect_backward<T, false, true>(pools);
  }
  const int64_t out_rows = (pools.rows + stride - 1) / stride, out_columns = (pools.columns + stride - 1) / stride;
  for (int64_t y = 0; y < out_rows; ++y) {
    for (int64_t lane = 0; lane < edge_lanes<T>; lane += Vector<T>::lanes) {
      if (pools.largest) largest_backward(pools, y, out_columns, lane);
      if (pools.average) average_backward(pools, y, out_columns, lane);
    }
  }
}

// Every second number of two vectors, and the way back.
template <typename T>
struct Pairs {
  using V = typename Vector<T>::type;
  using Lanes = typename Swap<T>::lanes;
  static constexpr int lanes = Vector<T>::lanes;

  static inline V every_second(V first, V second, int from) {
    Lanes which{};
#pragma GCC unroll 16
    for (int lane = 0; lane < lanes; ++lane) which[lane] = 2 * lane + from;
    return __builtin_shuffle(first, second, which);
  }
  static inline V interleaved(V even, V odd, int from) {
    Lanes which{};
#pragma GCC unroll 16
    for (int lane = 0; lane < lanes; ++lane) which[lane] = from + lane / 2 + (lane & 1 ? lanes : 0);
    return __builtin_shuffle(even, odd, which);
  }
};

// Calls step(first, count) for vectors of `half` numbers, each of which belongs to a pair; the last one may be shorter.
template <typename T, typename Step>
inline void each_half(int64_t half, const Step& step) {
  constexpr int lanes = Vector<T>::lanes;
  int64_t i = 0;
  for (; i + lanes <= half; i += lanes) step(i, lanes);
  if (i < half) step(i, half - i);
}

// `count` pairs of a row, as those that come first and second.
template <typename T>
struct LoadedPairs {
  typename Vector<T>::type first, second;

  LoadedPairs(const T* row, int64_t count) {
    constexpr int lanes = Vector<T>::lanes;
    typename Vector<T>::type a{}, b{};
    if (count == lanes) {
      a = load(row);
      b = load(row + lanes);
    } else {
      a = load_part(row, 2 * count < lanes ? 2 * count : lanes, a);
      if (2 * count > lanes) b = load_part(row + lanes, 2 * count - lanes, b);
    }
    first = Pairs<T>::every_second(a, b, 0);
    second = Pairs<T>::every_second(a, b, 1);
  }
};

template <typename T>
inline void store_pairs(T* row, int64_t count, typename Vector<T>::type first, typename Vector<T>::type second) {
  constexpr int lanes = Vector<T>::lanes;
  const auto a = Pairs<T>::interleaved(first, second, 0), b = Pairs<T>::interleaved(first, second, lanes / 2);
  if (count == lanes) {
    store(row, a);
    store(row + lanes, b);
    return;
  }
  store_part(row, 2 * count < lanes ? 2 * count : lanes, a);
  if (2 * count > lanes) store_part(row + lanes, 2 * count - lanes, b);
}

// Largest of each 2 x 2 of a plane of one image.
template <typename T>
void halve(const T* x, int64_t rows, int64_t columns, T* to) {
  const int64_t half = columns / 2;
  for (int64_t y = 0; y < rows / 2; ++y) {
    const T* row = x + 2 * y * columns;
    each_half<T>(half, [&](int64_t i, int64_t count) {
      const LoadedPairs<T> top(row + 2 * i, count), bottom(row + columns + 2 * i, count);
      const auto best = larger(larger(larger(top.first, top.second), bottom.first), bottom.second);
      if (count == Vector<T>::lanes) {
        store(to + y * half + i, best);
      } else {
        store_part(to + y * half + i, count, best);
      }
    });
  }
}

// The first of the largest takes the gradient, as in PyTorch the last NaN does.
template <typename T>
void halve_backward(const T* grad, const T* x, int64_t rows, int64_t columns, T* to) {
  using V = typename Vector<T>::type;
  const int64_t half = columns / 2;
  for (int64_t y = 0; y < rows / 2; ++y) {
    const int64_t row = 2 * y * columns;
    each_half<T>(half, [&](int64_t i, int64_t count) {
      const int64_t at = row + 2 * i;
      const LoadedPairs<T> top(x + at, count), bottom(x + at + columns, count);
      const V zero{}, a = top.first, b = top.second, c = bottom.first, d = bottom.second;
      const T* from = grad + y * half + i;
      const V g = count == Vector<T>::lanes ? load(from) : load_part(from, count, zero);
      const auto second = (b > a) | (b != b);
      const V two = second ? b : a;
      const auto third = (c > two) | (c != c);
      const V three = third ? c : two;
      const auto fourth = (d > three) | (d != d);
      const V of_d = fourth ? g : zero, rest = fourth ? zero : g;
      const V of_c = third ? rest : zero, left = third ? zero : rest;
      const V of_b = second ? left : zero, of_a = second ? zero : left;
      store_pairs(to + at, count, of_a, of_b);
      store_pairs(to + at + columns, count, of_c, of_d);
    });
  }
}

}  // namespace
}  // namespace sslfast
