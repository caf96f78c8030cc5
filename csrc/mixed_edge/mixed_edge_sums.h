#pragma once
// Planes mixed across channels, and the sums of their products.
#include "mixed_edge.h"
#include "sslfast/vector.h"

namespace sslfast {
namespace {

constexpr int mixed_pieces = SSLFAST_VECTOR_BITS == 512 ? 4 : 2;
constexpr int64_t pieces_per_sum = 64;  // so many are added in registers, then to memory

template <typename T>
double sum_of_images(const T* piece, int64_t images) {
  double sum = 0;
  for (int64_t image = 0; image < images; ++image) sum += piece[image];
  return sum;
}

template <typename T, int outputs, int pieces>
inline void mix_tile(const EdgeMixture<T>& mixture, int64_t first, int64_t from, int64_t to) {
  using V = typename Vector<T>::type;
  V sum[outputs][pieces];
#pragma GCC unroll 4
  for (int j = 0; j < outputs; ++j) {
#pragma GCC unroll 4
    for (int p = 0; p < pieces; ++p) sum[j][p] = splat(mixture.bias[first + j]);
  }
  for (int64_t n = 0; n < mixture.count; ++n) {
    const T* in = mixture.in[n] + from;
    V value[pieces];
#pragma GCC unroll 4
    for (int p = 0; p < pieces; ++p) value[p] = load(in + p * edge_lanes<T>);
    const T* coefficients = mixture.coefficients + n * mixture.outputs + first;
#pragma GCC unroll 4
    for (int j = 0; j < outputs; ++j) {
      const V factor = splat(coefficients[j]);
#pragma GCC unroll 4
      for (int p = 0; p < pieces; ++p) sum[j][p] += factor * value[p];
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < outputs; ++j) {
    for (int64_t m = 0; m < mixture.owns; ++m) {
      const T* own = mixture.own[m * mixture.outputs + first + j] + from;
      const V factor = splat(mixture.own_coefficients[m * mixture.outputs + first + j]);
#pragma GCC unroll 4
      for (int p = 0; p < pieces; ++p) sum[j][p] += factor * load(own + p * edge_lanes<T>);
    }
    T* out = mixture.out[first + j] + to;
#pragma GCC unroll 4
    for (int p = 0; p < pieces; ++p) {
      V value = sum[j][p];
      // NaN is not < 0, and stays.
      if (mixture.positive_part) value = value < V{} ? V{} : value;
      store(out + p * edge_lanes<T>, value);
    }
  }
}

template <typename T, int outputs>
inline void mix_row(const EdgeMixture<T>& mixture, int64_t first, int64_t y, int64_t lane) {
  const int64_t from = y * mixture.columns * edge_lanes<T> + lane, to = y * mixture.out_columns * edge_lanes<T> + lane;
  int64_t x = 0;
  for (; x + mixed_pieces <= mixture.columns; x += mixed_pieces) {
    mix_tile<T, outputs, mixed_pieces>(mixture, first, from + x * edge_lanes<T>, to + x * edge_lanes<T>);
  }
  for (; x < mixture.columns; ++x) {
    mix_tile<T, outputs, 1>(mixture, first, from + x * edge_lanes<T>, to + x * edge_lanes<T>);
  }
}

template <typename T>
void mix(const EdgeMixture<T>& mixture) {
  for (int64_t y = 0; y < mixture.rows; ++y) {
    for (int64_t lane = 0; lane < edge_lanes<T>; lane += Vector<T>::lanes) {
      int64_t first = 0;
      for (; first + 4 <= mixture.outputs; first += 4) mix_row<T, 4>(mixture, first, y, lane);
      for (; first + 2 <= mixture.outputs; first += 2) mix_row<T, 2>(mixture, first, y, lane);
      for (; first < mixture.outputs; ++first) mix_row<T, 1>(mixture, first, y, lane);
    }
  }
}

template <typename T, int lefts, int rights, bool symmetric>
inline void products_tile(const EdgeProducts<T>& products, int64_t l, int64_t r, int64_t from, int64_t count,
                          int64_t lane) {
  using V = typename Vector<T>::type;
  V sum[lefts][rights] = {}, left_centre[lefts], right_centre[rights];
  const T *left[lefts], *right[rights];
#pragma GCC unroll 4
  for (int i = 0; i < lefts; ++i) {
    left[i] = products.left[l + i] + from * edge_lanes<T> + lane;
    left_centre[i] = symmetric ? splat(products.centre[l + i]) : V{};
  }
#pragma GCC unroll 4
  for (int i = 0; i < rights; ++i) {
    right[i] = products.right[r + i] + from * edge_lanes<T> + lane;
    right_centre[i] = splat(products.centre[r + i]);
  }
  for (int64_t p = 0; p < count; ++p) {
    V value[lefts];
#pragma GCC unroll 4
    for (int i = 0; i < lefts; ++i) {
      value[i] = load(left[i] + p * edge_lanes<T>);
      if (symmetric) value[i] -= left_centre[i];
    }
#pragma GCC unroll 4
    for (int j = 0; j < rights; ++j) {
      const V other = load(right[j] + p * edge_lanes<T>) - right_centre[j];
#pragma GCC unroll 4
      for (int i = 0; i < lefts; ++i) sum[i][j] += value[i] * other;
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < lefts; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < rights; ++j) {
      T* to = products.scratch + ((l + i) * products.rights + r + j) * edge_lanes<T> + lane;
      store(to, load(to) + sum[i][j]);
    }
  }
}

template <typename T, bool symmetric, int lefts>
inline void products_rows(const EdgeProducts<T>& products, int64_t l, int64_t from, int64_t count, int64_t lane) {
  constexpr int wide = SSLFAST_VECTOR_BITS == 512 ? 4 : 2;
  int64_t r = symmetric ? l : 0;
  for (; r + wide <= products.rights; r += wide) {
    products_tile<T, lefts, wide, symmetric>(products, l, r, from, count, lane);
  }
  for (; r < products.rights; ++r) products_tile<T, lefts, 1, symmetric>(products, l, r, from, count, lane);
}

template <typename T, bool symmetric>
void all_products(const EdgeProducts<T>& products) {
  using V = typename Vector<T>::type;
  for (int64_t from = 0; from < products.positions; from += pieces_per_sum) {
    const int64_t left_over = products.positions - from;
    const int64_t count = left_over < pieces_per_sum ? left_over : pieces_per_sum;
    for (int64_t lane = 0; lane < edge_lanes<T>; lane += Vector<T>::lanes) {
      int64_t l = 0;
      for (; l + 4 <= products.lefts; l += 4) products_rows<T, symmetric, 4>(products, l, from, count, lane);
      for (; l + 2 <= products.lefts; l += 2) products_rows<T, symmetric, 2>(products, l, from, count, lane);
      for (; l < products.lefts; ++l) products_rows<T, symmetric, 1>(products, l, from, count, lane);
      for (l = 0; l < products.lefts; ++l) {
        const T* left = products.left[l] + from * edge_lanes<T> + lane;
        const V centre = symmetric ? splat(products.centre[l]) : V{};
        V sum{};
        for (int64_t p = 0; p < count; ++p) sum += load(left + p * edge_lanes<T>) - centre;
        T* to = products.scratch + (products.lefts * products.rights + l) * edge_lanes<T> + lane;
        store(to, load(to) + sum);
      }
    }
  }
}

template <typename T>
void products(const EdgeProducts<T>& products) {
  const int64_t pairs = products.lefts * products.rights;
  for (int64_t i = 0; i < (pairs + products.lefts) * edge_lanes<T>; ++i) products.scratch[i] = 0;
  if (products.symmetric) {
    all_products<T, true>(products);
  } else {
    all_products<T, false>(products);
  }
  for (int64_t l = 0; l < products.lefts; ++l) {
    for (int64_t r = 0; r < products.rights; ++r) {
      // Of a symmetric matrix, what lies left of a tile is not there.
      const int64_t entry = products.symmetric && r < l ? r * products.rights + l : l * products.rights + r;
      products.sums[l * products.rights + r] = sum_of_images(products.scratch + entry * edge_lanes<T>, products.images);
    }
    products.left_sums[l] = sum_of_images(products.scratch + (pairs + l) * edge_lanes<T>, products.images);
  }
}

// Sums of step(vector) over all positions, with four sums that do not wait for each other.
template <typename T, typename Step>
inline double sum_of_steps(const T* a, int64_t positions, int64_t images, const Step& step) {
  using V = typename Vector<T>::type;
  T piece[edge_lanes<T>];
  for (int64_t lane = 0; lane < edge_lanes<T>; lane += Vector<T>::lanes) {
    V total{};
    for (int64_t from = 0; from < positions; from += pieces_per_sum) {
      const int64_t end = positions - from < pieces_per_sum ? positions : from + pieces_per_sum;
      V part[4] = {};
      int64_t p = from;
      for (; p + 4 <= end; p += 4) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const int64_t at = (p + i) * edge_lanes<T> + lane;
          part[i] += step(load(a + at), at);
        }
      }
      for (; p < end; ++p) part[0] += step(load(a + p * edge_lanes<T> + lane), p * edge_lanes<T> + lane);
      total += (part[0] + part[1]) + (part[2] + part[3]);
    }
    store(piece + lane, total);
  }
  return sum_of_images(piece, images);
}

template <typename T>
double sum(const T* a, int64_t positions, int64_t step, int64_t images) {
  using V = typename Vector<T>::type;
  if (step == 1) return sum_of_steps(a, positions, images, [](V value, int64_t) { return value; });
  T piece[edge_lanes<T>];
  for (int64_t lane = 0; lane < edge_lanes<T>; lane += Vector<T>::lanes) {
    V total{};
    for (int64_t p = 0; p < positions; p += step) total += load(a + p * edge_lanes<T> + lane);
    store(piece + lane, total);
  }
  return sum_of_images(piece, images);
}

template <typename T>
void squares(const T* a, T centre, int64_t positions, int64_t images, double* first, double* second) {
  using V = typename Vector<T>::type;
  const V middle = splat(centre);
  T pieces[2][edge_lanes<T>];
  for (int64_t lane = 0; lane < edge_lanes<T>; lane += Vector<T>::lanes) {
    V totals[2] = {};
    for (int64_t from = 0; from < positions; from += pieces_per_sum) {
      const int64_t end = positions - from < pieces_per_sum ? positions : from + pieces_per_sum;
      V sums[2] = {}, squares[2] = {};
      for (int64_t p = from; p < end; ++p) {
        const V value = load(a + p * edge_lanes<T> + lane) - middle;
        const V other = sums[0], square = squares[0];  // two sums that do not wait for each other
        sums[0] = sums[1];
        squares[0] = squares[1];
        sums[1] = other + value;
        squares[1] = square + value * value;
      }
      totals[0] += sums[0] + sums[1];
      totals[1] += squares[0] + squares[1];
    }
    store(pieces[0] + lane, totals[0]);
    store(pieces[1] + lane, totals[1]);
  }
  *first = sum_of_images(pieces[0], images);
  *second = sum_of_images(pieces[1], images);
}

template <typename T>
double dot(const T* a, const T* b, T centre, int64_t positions, int64_t images) {
  using V = typename Vector<T>::type;
  const V middle = splat(centre);
  return sum_of_steps(a, positions, images, [=](V value, int64_t at) { return value * (load(b + at) - middle); });
}

}  // namespace
}  // namespace sslfast
