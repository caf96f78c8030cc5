#pragma once
// What loops over rows of scores share, for sources that are compiled once per capability.
#include <cstdint>

#include "sslfast/vector.h"

namespace sslfast {
namespace {

constexpr int64_t columns_per_sum = 1024;  // so many are added lane by lane, then to a double
constexpr int64_t columns_for_shift = 32;  // so many are looked at to guess how large a row's exponents get
constexpr int64_t rows_for_shift = 8;      // and so many rows for a column's

// Sums of exponentials above this were guessed wrongly: the next ones might overflow, their reciprocals vanish.
constexpr double largest_sum = 1e30;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename T>
constexpr T infinity = static_cast<T>(__builtin_inf());
template <typename T>
constexpr T lowest = sizeof(T) == 4 ? static_cast<T>(-__FLT_MAX__) : static_cast<T>(-__DBL_MAX__);

template <typename T>
constexpr T smallest = sizeof(T) == 4 ? static_cast<T>(__FLT_MIN__) : static_cast<T>(__DBL_MIN__);  // and normal

// Calls step(k, count) for every vector that starts at k; count is a constant except for the last, shorter one.
template <typename T, typename Step>
inline void each_vector(int64_t begin, int64_t end, const Step& step) {
  constexpr int lanes = Vector<T>::lanes;
  int64_t k = begin;
  for (; k + lanes <= end; k += lanes) step(k, lanes);
  if (k < end) step(k, end - k);
}

// Scores beyond the last column count as -infinity: their exponential is 0.
template <typename T>
inline typename Vector<T>::type scores_at(const T* from, int64_t count, T rest = -infinity<T>) {
  return count == Vector<T>::lanes ? load(from) : load_part(from, count, splat(rest));
}

// scale x. A compiler may fuse the product into the subtraction that follows, which is then the more exact.
template <typename T>
inline typename Vector<T>::type exponents_at(const T* from, int64_t count, T scale) {
  return scores_at(from, count) * scale;
}

// The same, rounded before anything else happens to it: of scores of 1e8 a fused product and a shift that was rounded
// differ by hundreds, and their maximum would not be 0.
template <typename T>
inline typename Vector<T>::type rounded_exponents_at(const T* from, int64_t count, T scale) {
  auto product = exponents_at(from, count, scale);
#if SSLFAST_VECTOR_BITS == 512
  __asm__("" : "+v"(product));
#elif defined(__x86_64__)
  __asm__("" : "+x"(product));
#endif
  return product;
}

template <typename T>
inline void store_at(T* to, typename Vector<T>::type value, int64_t count) {
  if (count == Vector<T>::lanes) {
    store(to, value);
  } else {
    store_part(to, count, value);
  }
}

// The same past the caches, where the address allows that.
template <typename T>
inline void stream_at(T* to, typename Vector<T>::type value, int64_t count) {
#if SSLFAST_VECTOR_BITS == 512
  if (count == Vector<T>::lanes && reinterpret_cast<uintptr_t>(to) % sizeof(value) == 0) {
    if constexpr (sizeof(T) == 4) {
      _mm512_stream_ps(to, value);
    } else {
      _mm512_stream_pd(to, value);
    }
    return;
  }
#endif
  store_at(to, value, count);
}

// How many numbers stand before the first whole vector of memory.
template <typename T>
inline int64_t columns_before_line(const T* from) {
  constexpr int64_t size = sizeof(typename Vector<T>::type);
  return (size - reinterpret_cast<intptr_t>(from) % size) % size / static_cast<int64_t>(sizeof(T));
}

// The lanes in halves, so that no sum waits for all those before it.
template <typename T, typename Combine>
inline T combined(typename Vector<T>::type value, const Combine& combine) {
  T lanes[Vector<T>::lanes];
  __builtin_memcpy(lanes, &value, sizeof(lanes));
#pragma GCC unroll 4
  for (int half = Vector<T>::lanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int lane = 0; lane < half; ++lane) lanes[lane] = combine(lanes[lane], lanes[lane + half]);
  }
  return lanes[0];
}

template <typename T>
inline T total_of(typename Vector<T>::type value) {
  return combined<T>(value, [](T a, T b) { return a + b; });
}

template <typename T>
inline T highest_of(typename Vector<T>::type value) {
  return combined<T>(value, [](T a, T b) { return b > a ? b : a; });
}

// max_k scale x_k - potential_k over the first `columns`, without a potential if there is none. The difference is the
// same expression as where it is exponentiated: fused here and not there, it would not be the maximum.
template <typename T>
inline T highest_exponent(const T* scores, int64_t columns, T scale, const T* potential) {
  auto best = splat(lowest<T>);
  if (potential == nullptr) {
    each_vector<T>(0, columns, [&](int64_t k, int64_t count) {
      const auto next = exponents_at(scores + k, count, scale);
      best = next > best ? next : best;
    });
  } else {
    each_vector<T>(0, columns, [&](int64_t k, int64_t count) {
      const auto next = exponents_at(scores + k, count, scale) - load(potential + k);
      best = next > best ? next : best;
    });
  }
  return highest_of<T>(best);
}

}  // namespace
}  // namespace sslfast
