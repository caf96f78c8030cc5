#pragma once
// Vectors of SSLFAST_VECTOR_BITS bits, for sources that are compiled once per capability.
// Everything has internal linkage: two capabilities must never share a function.
#include <cstdint>

namespace sslfast {
namespace {

template <typename T>
struct Vector;
template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(SSLFAST_VECTOR_BITS / 8)));
  typedef uint32_t bits __attribute__((vector_size(SSLFAST_VECTOR_BITS / 8)));
  typedef int32_t labels __attribute__((vector_size(SSLFAST_VECTOR_BITS / 8)));
  static constexpr int lanes = SSLFAST_VECTOR_BITS / 32;
};
template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(SSLFAST_VECTOR_BITS / 8)));
  typedef int64_t labels __attribute__((vector_size(SSLFAST_VECTOR_BITS / 8)));
  static constexpr int lanes = SSLFAST_VECTOR_BITS / 64;
};

template <typename T>
inline typename Vector<T>::type load(const T* from) {
  typename Vector<T>::type value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

template <typename T>
inline void store(T* to, typename Vector<T>::type value) {
  __builtin_memcpy(to, &value, sizeof(value));
}

template <typename T>
inline typename Vector<T>::type splat(T value) {
  return value - typename Vector<T>::type{};
}

// exp, for arguments in [-87.3, 88]; NaN for NaN. Relative error < 2^-22.
inline Vector<float>::type bounded_exponential(Vector<float>::type x) {
  using V = Vector<float>::type;
  // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
  const V magic = splat(12582912.0f);
  const V shifted = x * 1.44269504f + magic;
  const V whole = shifted - magic;
  V rest = x - whole * 0.693359375f;
  rest = rest - whole * -2.12194440e-4f;
  // Cephes' polynomial for exp on [-ln 2 / 2, ln 2 / 2].
  V value = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  value = value * rest + 8.3334519073e-3f;
  value = value * rest + 4.1665795894e-2f;
  value = value * rest + 1.6666665459e-1f;
  value = value * rest + 5.0000001201e-1f;
  value = value * rest * rest + rest + 1.0f;
  Vector<float>::bits exponent;
  __builtin_memcpy(&exponent, &shifted, sizeof(exponent));
  exponent = (exponent << 23) + 0x3f800000u;
  V scale;
  __builtin_memcpy(&scale, &exponent, sizeof(scale));
  return value * scale;
}

// exp, for arguments up to 88; 0 below -87.3 (no subnormals), NaN for NaN. Relative error < 2^-22.
inline Vector<float>::type exponential(Vector<float>::type x) {
  using V = Vector<float>::type;
  const V lowest = splat(-87.3f);
  const V zero{};
  return x < lowest ? zero : bounded_exponential(x < lowest ? lowest : x);
}

// float64 is there for gradient checks: the C library's exp, lane by lane.
inline Vector<double>::type exponential(Vector<double>::type x) {
  for (int lane = 0; lane < Vector<double>::lanes; ++lane) x[lane] = __builtin_exp(x[lane]);
  return x;
}

inline Vector<double>::type bounded_exponential(Vector<double>::type x) { return exponential(x); }

template <typename T>
inline T sum_of(typename Vector<T>::type value) {
  T sum = 0;
  for (int lane = 0; lane < Vector<T>::lanes; ++lane) sum += value[lane];
  return sum;
}

template <typename T>
inline T largest_of(typename Vector<T>::type value) {
  T largest = value[0];
  for (int lane = 1; lane < Vector<T>::lanes; ++lane) largest = value[lane] > largest ? value[lane] : largest;
  return largest;
}

}  // namespace
}  // namespace sslfast
