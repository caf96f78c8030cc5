#include "store/convert.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "store/vectors.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sslfast::store {
namespace {

// Inlined into a function for each capability below, where the compiler makes vectors of its loops.
#define SSLFAST_INLINE __attribute__((always_inline)) inline

SSLFAST_INLINE void bfloat16_loop(const unsigned char* in, float* out, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    std::uint16_t half;
    std::memcpy(&half, in + 2 * i, 2);
    out[i] = std::bit_cast<float>(static_cast<std::uint32_t>(half) << 16);
  }
}

// Exponents are moved by a product, which takes subnormal numbers along; infinity and NaN are not reached by it.
SSLFAST_INLINE void float16_loop(const unsigned char* in, float* out, std::size_t count) {
  const float scale = std::bit_cast<float>(0x77800000u);  // 2^112
  for (std::size_t i = 0; i < count; ++i) {
    std::uint16_t half;
    std::memcpy(&half, in + 2 * i, 2);
    const std::uint32_t bits = half, sign = (bits & 0x8000) << 16, size = (bits & 0x7FFF) << 13;
    const std::uint32_t moved = std::bit_cast<std::uint32_t>(std::bit_cast<float>(size) * scale);
    out[i] = std::bit_cast<float>(sign | (size < 0x0F800000 ? moved : size | 0x7F800000));
  }
}

SSLFAST_INLINE void standardise_loop(float* out, const float* mean, const float* deviation, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) out[i] = (out[i] - mean[i]) / deviation[i];
}

SSLFAST_INLINE bool finite_loop(const float* values, std::size_t count) {
  std::uint32_t bad = 0;
  for (std::size_t i = 0; i < count; ++i) {
    bad |= static_cast<std::uint32_t>((std::bit_cast<std::uint32_t>(values[i]) & 0x7F800000) == 0x7F800000);
  }
  return bad == 0;
}

constexpr std::size_t columns = 64;  // whose sums stay in registers or the first cache

SSLFAST_INLINE void moments_loop(const float* values, std::size_t rows, std::size_t width, std::size_t used,
                                 double before, double* mean, double* squares) {
  double sum[columns] = {}, centre[columns], square[columns] = {};
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t i = 0; i < used; ++i) sum[i] += values[row * width + i];
  }
  const double count = static_cast<double>(rows), all = before + count;
  for (std::size_t i = 0; i < used; ++i) centre[i] = sum[i] / count;
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t i = 0; i < used; ++i) {
      const double apart = values[row * width + i] - centre[i];
      square[i] += apart * apart;
    }
  }
  for (std::size_t i = 0; i < used; ++i) {
    const double apart = centre[i] - mean[i];
    mean[i] += apart * (count / all);
    squares[i] += square[i] + apart * apart * (before * count / all);
  }
}

struct Functions {
  void (*bfloat16)(const unsigned char*, float*, std::size_t);
  void (*float16)(const unsigned char*, float*, std::size_t);
  void (*standardise)(float*, const float*, const float*, std::size_t);
  bool (*finite)(const float*, std::size_t);
  void (*moments)(const float*, std::size_t, std::size_t, std::size_t, double, double*, double*);
};

#define SSLFAST_FUNCTIONS(name, target, float16_vectors)                                                           \
  struct name {                                                                                                    \
    target static void bfloat16(const unsigned char* in, float* out, std::size_t n) { bfloat16_loop(in, out, n); } \
    target static void float16(const unsigned char* in, float* out, std::size_t n) {                               \
      const std::size_t done = float16_vectors(in, out, n);                                                        \
      float16_loop(in + 2 * done, out + done, n - done);                                                           \
    }                                                                                                              \
    target static void standard(float* out, const float* mean, const float* deviation, std::size_t n) {            \
      standardise_loop(out, mean, deviation, n);                                                                   \
    }                                                                                                              \
    target static bool finite(const float* values, std::size_t n) { return finite_loop(values, n); }               \
    target static void moments(const float* values, std::size_t rows, std::size_t width, std::size_t used,         \
                               double before, double* mean, double* squares) {                                     \
      if (used == columns) {                                                                                       \
        moments_loop(values, rows, width, columns, before, mean, squares);                                         \
      } else {                                                                                                     \
        moments_loop(values, rows, width, used, before, mean, squares);                                            \
      }                                                                                                            \
    }                                                                                                              \
    static constexpr Functions all{bfloat16, float16, standard, finite, moments};                                  \
  }

std::size_t no_vectors(const unsigned char*, float*, std::size_t) { return 0; }

SSLFAST_FUNCTIONS(Portable, , no_vectors);

#if defined(__x86_64__)
#define SSLFAST_256 __attribute__((target("avx2,f16c")))
#define SSLFAST_512 __attribute__((target("avx512f,avx2,f16c,prefer-vector-width=512")))

SSLFAST_256 std::size_t float16_256(const unsigned char* in, float* out, std::size_t count) {
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + 2 * i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(half));
  }
  return i;
}

// With a mask of ones: GCC 12 warns of its own header's form without.
SSLFAST_512 std::size_t float16_512(const unsigned char* in, float* out, std::size_t count) {
  std::size_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + 2 * i));
    _mm512_storeu_ps(out + i, _mm512_maskz_cvtph_ps(0xFFFF, half));
  }
  return i;
}

SSLFAST_FUNCTIONS(Avx2, SSLFAST_256, float16_256);
SSLFAST_FUNCTIONS(Avx512, SSLFAST_512, float16_512);
#endif

const Functions& functions() {
#if defined(__x86_64__)
  const int bits = vector_bits();
  if (bits >= 256) return bits == 512 ? Avx512::all : Avx2::all;
#endif
  return Portable::all;
}

}  // namespace

void to_float(Kind kind, const unsigned char* in, float* out, std::size_t count) {
  if (kind == Kind::float32) {
    std::memcpy(out, in, 4 * count);
  } else if (kind == Kind::float16) {
    functions().float16(in, out, count);
  } else {
    functions().bfloat16(in, out, count);
  }
}

void standardise(float* out, const float* mean, const float* deviation, std::size_t count) {
  functions().standardise(out, mean, deviation, count);
}

bool all_finite(const float* values, std::size_t count) { return functions().finite(values, count); }

void add_moments(const float* values, std::size_t rows, std::size_t width, std::size_t first, std::size_t last,
                 double before, double* mean, double* squares) {
  for (std::size_t at = first; at < last; at += columns) {
    functions().moments(values + at, rows, width, std::min(columns, last - at), before, mean + at, squares + at);
  }
}

}  // namespace sslfast::store
