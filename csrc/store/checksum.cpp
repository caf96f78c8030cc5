#include "store/checksum.h"

#include <array>
#include <bit>
#include <cstring>

#include "store/vectors.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

static_assert(std::endian::native == std::endian::little, "tables and folding read words of a little-endian machine");

namespace sslfast::store {
namespace {

constexpr std::uint32_t polynomial = 0xEDB88320;  // bit-reflected, as zlib's

using Table = std::array<std::array<std::uint32_t, 256>, 8>;

// tables[k][b]: the remainder of byte b followed by k zero bytes.
constexpr Table make_tables() {
  Table tables{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) != 0 ? polynomial : 0);
    tables[0][byte] = value;
  }
  for (std::size_t k = 1; k < 8; ++k) {
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const std::uint32_t value = tables[k - 1][byte];
      tables[k][byte] = (value >> 8) ^ tables[0][value & 255];
    }
  }
  return tables;
}

constexpr Table tables = make_tables();

// Without the inversions at both ends that zlib's interface has.
std::uint32_t by_table(std::uint32_t state, const unsigned char* data, std::size_t size) {
  for (; size >= 8; data += 8, size -= 8) {
    std::uint32_t low, high;
    std::memcpy(&low, data, 4);
    std::memcpy(&high, data + 4, 4);
    low ^= state;
    state = tables[7][low & 255] ^ tables[6][low >> 8 & 255] ^ tables[5][low >> 16 & 255] ^ tables[4][low >> 24] ^
            tables[3][high & 255] ^ tables[2][high >> 8 & 255] ^ tables[1][high >> 16 & 255] ^ tables[0][high >> 24];
  }
  for (; size > 0; ++data, --size) state = (state >> 8) ^ tables[0][(state ^ *data) & 255];
  return state;
}

#if defined(__x86_64__)

// x^power modulo the polynomial, reflected to 33 bits: what a carry-less product moves a 64-bit word along by
// (Gopal et al., Fast CRC computation for generic polynomials using PCLMULQDQ, Intel 2009).
constexpr std::uint64_t moved(int power) {
  std::uint32_t value = 0x80000000;  // x^0
  for (int i = 0; i < power; ++i) value = (value >> 1) ^ ((value & 1) != 0 ? polynomial : 0);
  return static_cast<std::uint64_t>(value) << 1;
}
static_assert(moved(4 * 128 + 32) == 0x154442bd4 && moved(4 * 128 - 32) == 0x1c6e41596);

// Both fold all but the tail into as many bytes as they hold in registers, whose remainder the tables take.
__attribute__((target("pclmul,sse4.1"))) std::uint32_t by_128(std::uint32_t state, const unsigned char* data,
                                                              std::size_t size) {
  constexpr std::size_t step = 64;
  const __m128i along = _mm_set_epi64x(moved(8 * step - 32), moved(8 * step + 32));
  __m128i held[4];
  for (int i = 0; i < 4; ++i) held[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(data) + i);
  held[0] = _mm_xor_si128(held[0], _mm_cvtsi32_si128(static_cast<int>(state)));
  for (data += step, size -= step; size >= step; data += step, size -= step) {
    for (int i = 0; i < 4; ++i) {
      const __m128i low = _mm_clmulepi64_si128(held[i], along, 0x00), high = _mm_clmulepi64_si128(held[i], along, 0x11);
      const __m128i next = _mm_loadu_si128(reinterpret_cast<const __m128i*>(data) + i);
      held[i] = _mm_xor_si128(_mm_xor_si128(low, high), next);
    }
  }
  alignas(16) unsigned char rest[step];
  std::memcpy(rest, held, step);
  return by_table(by_table(0, rest, step), data, size);
}

__attribute__((target("avx512f,vpclmulqdq"))) std::uint32_t by_512(std::uint32_t state, const unsigned char* data,
                                                                   std::size_t size) {
  constexpr std::size_t step = 256;
  const __m512i along =
      _mm512_set4_epi64(moved(8 * step - 32), moved(8 * step + 32), moved(8 * step - 32), moved(8 * step + 32));
  __m512i held[4];
  for (int i = 0; i < 4; ++i) held[i] = _mm512_loadu_si512(data + 64 * i);
  held[0] = _mm512_xor_si512(held[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(state))));
  for (data += step, size -= step; size >= step; data += step, size -= step) {
    for (int i = 0; i < 4; ++i) {
      const __m512i low = _mm512_clmulepi64_epi128(held[i], along, 0x00);
      const __m512i high = _mm512_clmulepi64_epi128(held[i], along, 0x11);
      held[i] = _mm512_ternarylogic_epi64(low, high, _mm512_loadu_si512(data + 64 * i), 0x96);
    }
  }
  alignas(64) unsigned char rest[step];
  std::memcpy(rest, held, step);
  return by_table(by_128(0, rest, step), data, size);
}

#endif

}  // namespace

std::uint32_t crc32(std::uint32_t value, const unsigned char* data, std::size_t size) {
  const std::uint32_t state = ~value;
#if defined(__x86_64__)
  const int bits = vector_bits();
  if (bits == 512 && size >= 256) return ~by_512(state, data, size);
  if (bits >= 128 && size >= 64) return ~by_128(state, data, size);
#endif
  return ~by_table(state, data, size);
}

}  // namespace sslfast::store
