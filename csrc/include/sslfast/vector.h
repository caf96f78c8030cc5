#pragma once
// Vectors of SSLFAST_VECTOR_BITS bits, for sources that are compiled once per capability.
// Everything has internal linkage: two capabilities must never share a function.
#include <cstdint>
#if SSLFAST_VECTOR_BITS == 512
#include <immintrin.h>
#endif

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

// The first `count` lanes (0 to all) from memory, `rest` in the others; memory behind them is not touched.
template <typename T>
inline typename Vector<T>::type load_part(const T* from, int64_t count, typename Vector<T>::type rest) {
#if SSLFAST_VECTOR_BITS == 512
  if constexpr (sizeof(T) == 4) {
    return __builtin_ia32_loadups512_mask(from, rest, static_cast<uint16_t>((1u << count) - 1));
  } else {
    return __builtin_ia32_loadupd512_mask(from, rest, static_cast<uint8_t>((1u << count) - 1));
  }
#else
  // Unrolled: a call of memcpy would empty the vector registers of the loop around it.
#pragma GCC unroll 8
  for (int lane = 0; lane < Vector<T>::lanes; ++lane) {
    if (lane < count) rest[lane] = from[lane];
  }
  return rest;
#endif
}

// The first `count` lanes to memory.
template <typename T>
inline void store_part(T* to, int64_t count, typename Vector<T>::type value) {
#if SSLFAST_VECTOR_BITS == 512
  if constexpr (sizeof(T) == 4) {
    __builtin_ia32_storeups512_mask(to, value, static_cast<uint16_t>((1u << count) - 1));
  } else {
    __builtin_ia32_storeupd512_mask(to, value, static_cast<uint8_t>((1u << count) - 1));
  }
#else
#pragma GCC unroll 8
  for (int lane = 0; lane < Vector<T>::lanes; ++lane) {
    if (lane < count) to[lane] = value[lane];
  }
#endif
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

// The exponent of a share: of a term of a sum over the sum, which 1 bounds, but rounding does not where both are large.
template <typename V>
inline V at_most_zero(V x) {
  return x > V{} ? V{} : x;
}

// 2^x, for arguments up to 127; 0 below -125, NaN for NaN. Relative error < 2^-22.
inline Vector<float>::type power_of_two(Vector<float>::type x) {
  using V = Vector<float>::type;
  const V lowest = splat(-125.0f);
  const V zero{};
  const V magic = splat(12582912.0f);  // see exponential
  const V clamped = x < lowest ? lowest : x;
  const V shifted = clamped + magic;
  const V rest = clamped - (shifted - magic);
  // Minimax for 2^x on [-1/2, 1/2], exact at 0.
  V value = rest * 1.326472731307149e-3f + 9.671512991189957e-3f;
  value = value * rest + 5.550733581185341e-2f;
  value = value * rest + 2.4022242426872253e-1f;
  value = value * rest + 6.931470036506653e-1f;
  value = value * rest + 1.0f;
  Vector<float>::bits exponent;
  __builtin_memcpy(&exponent, &shifted, sizeof(exponent));
  exponent = (exponent << 23) + 0x3f800000u;
  V scale;
  __builtin_memcpy(&scale, &exponent, sizeof(scale));
  return x < lowest ? zero : value * scale;
}

inline Vector<double>::type power_of_two(Vector<double>::type x) {
  for (int lane = 0; lane < Vector<double>::lanes; ++lane) x[lane] = __builtin_exp2(x[lane]);
  return x;
}

// Natural logarithm of positive normal numbers; infinity for infinity, NaN for NaN. Relative error < 2^-23.
inline Vector<float>::type logarithm(Vector<float>::type x) {
  using V = Vector<float>::type;
  using B = Vector<float>::bits;
  typedef int32_t I __attribute__((vector_size(SSLFAST_VECTOR_BITS / 8)));
  // x = 2^exponent * (1 + rest), 1 + rest from sqrt(1/2) to sqrt(2), so that numbers next to 1 have exponent 0.
  B bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  bits -= 0x3f3504f3u;
  I exponent;
  __builtin_memcpy(&exponent, &bits, sizeof(exponent));
  const V whole = __builtin_convertvector(exponent >> 23, V);
  bits = (bits & 0x007fffffu) + 0x3f3504f3u;
  V rest;
  __builtin_memcpy(&rest, &bits, sizeof(rest));
  rest = rest - 1.0f;
  // Minimax for (log(1 + f) - f + f^2 / 2) / f^3.
  V value = rest * -7.634492963552475e-2f + 1.2761574983596802e-1f;
  value = value * rest + -1.3160182535648346e-1f;
  value = value * rest + 1.4201758801937103e-1f;
  value = value * rest + -1.6623356938362122e-1f;
  value = value * rest + 2.0001226663589478e-1f;
  value = value * rest + -2.500081956386566e-1f;
  value = value * rest + 3.333333134651184e-1f;
  const V square = rest * rest;
  value = value * rest * square + whole * -2.12194440e-4f;
  value = value - square * 0.5f;
  value = value + rest + whole * 0.693359375f;
  const V largest = splat(3.40282347e38f);
  return x <= largest ? value : x;
}

inline Vector<double>::type logarithm(Vector<double>::type x) {
  for (int lane = 0; lane < Vector<double>::lanes; ++lane) x[lane] = __builtin_log(x[lane]);
  return x;
}

// 2^y: 0 far below the smallest normal number, infinity above 127, NaN for NaN. Relative error < 2^-22.
// About half the instructions of `exponential`: what is below needs no reduction by ln 2.
#if SSLFAST_VECTOR_BITS == 512
inline Vector<float>::type exponential2(Vector<float>::type y) {
  // Full masks, because GCC 12 warns of its own header otherwise. Where one operand is NaN, the second one comes out.
  const __m512 clamped = _mm512_maskz_max_ps(0xffff, _mm512_set1_ps(-200.0f), y);
  // A minimax polynomial of 2^f for f = y - floor(y), in [0, 1): relative error 7.5e-8.
  const Vector<float>::type f = _mm512_maskz_reduce_ps(0xffff, clamped, 1);
  Vector<float>::type value = f * 0x1.ec3209bff6700p-10f + 0x1.26900d43d4ff0p-7f;
  value = value * f + 0x1.c9544614e7a54p-5f;
  value = value * f + 0x1.ebd5a8e20381cp-3f;
  value = value * f + 0x1.62e4f5a8934b6p-1f;
  value = value * f + 0x1.fffffd7c53969p-1f;
  return _mm512_maskz_scalef_ps(0xffff, value, clamped);  // multiplies by 2^floor(y)
}
#else
inline Vector<float>::type exponential2(Vector<float>::type y) {
  using V = Vector<float>::type;
  const V lowest = splat(-126.0f);
  const V highest = splat(127.0f);
  const V magic = splat(12582912.0f);  // adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits
  V clamped = y < lowest ? lowest : y;
  clamped = clamped > highest ? highest : clamped;
  const V shifted = clamped + magic;
  const V f = clamped - (shifted - magic);
  // A minimax polynomial of 2^f on [-1/2, 1/2]: relative error 7.5e-8.
  V value = f * 0x1.5c08e543b9e80p-10f + 0x1.3d0c531d3ede8p-7f;
  value = value * f + 0x1.c6b6e4faebfb4p-5f;
  value = value * f + 0x1.ebf9174ea3722p-3f;
  value = value * f + 0x1.62e428c5b7713p-1f;
  value = value * f + 0x1.00000133c1bf9p+0f;
  Vector<float>::bits exponent;
  __builtin_memcpy(&exponent, &shifted, sizeof(exponent));
  exponent = (exponent << 23) + 0x3f800000u;
  V scale;
  __builtin_memcpy(&scale, &exponent, sizeof(scale));
  value = y < lowest ? V{} : value * scale;
  return y > highest ? splat(__builtin_inff()) : value;
}
#endif

inline Vector<double>::type exponential2(Vector<double>::type y) {
  for (int lane = 0; lane < Vector<double>::lanes; ++lane) y[lane] = __builtin_exp2(y[lane]);
  return y;
}

// log2 x of positive normal numbers, with an error of about 2^-23 of the result or, around 1, of x - 1; -infinity below
// them, NaN for negative numbers and NaN.
inline Vector<float>::type logarithm2(Vector<float>::type x) {
  using V = Vector<float>::type;
  typedef int32_t whole __attribute__((vector_size(SSLFAST_VECTOR_BITS / 8)));
  Vector<float>::bits bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  const whole exponent = reinterpret_cast<whole>(bits - 0x3f3504f3u) >> 23;  // of x / sqrt(1/2)
  bits -= reinterpret_cast<Vector<float>::bits>(exponent) << 23;
  V r;
  __builtin_memcpy(&r, &bits, sizeof(r));
  r = r - 1.0f;
  // A minimax polynomial of log2(1 + r) / r on [sqrt(1/2) - 1, sqrt(2) - 1]: relative error 2.7e-8.
  V value = r * 0x1.01b6dd7d426fcp-3f - 0x1.a87d14545247ap-3f;
  value = value * r + 0x1.b9c91cbf14718p-3f;
  value = value * r - 0x1.e95be5e8bc3b0p-3f;
  value = value * r + 0x1.26d3842dafe03p-2f;
  value = value * r - 0x1.715c4e69783c7p-2f;
  value = value * r + 0x1.ec73d6f02f2b2p-2f;
  value = value * r - 0x1.7154707f22756p-1f;
  value = value * r + 0x1.715475b2c9defp+0f;
  value = value * r + __builtin_convertvector(exponent, V);
  const V smallest = splat(1.17549435e-38f);
  const V infinite = splat(__builtin_inff());
  value = x < smallest ? -infinite : value;
  value = x < 0.0f ? infinite - infinite : value;
  // What is no number, and infinity, stays.
  return x < infinite ? value : x;
}

inline Vector<double>::type logarithm2(Vector<double>::type x) {
  for (int lane = 0; lane < Vector<double>::lanes; ++lane) x[lane] = __builtin_log2(x[lane]);
  return x;
}

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
