// The register tile of the head bank's bfloat16 products on its own.
#include "head_bank/head_bank_products.h"
#include "limit.h"

namespace sslfast {
namespace {

// 6 x 128 and 128 x 64 cells are 36 KB: less than the first-level cache of a processor with these instructions.
constexpr int depth = 128;

int64_t multiply_half_tile(int64_t rounds) {
  using V = Vector<float>::type;
  constexpr int lanes = Vector<float>::lanes, width = tile_vectors * lanes;
  alignas(64) float rows[tile_rows * depth] = {};
  alignas(64) float columns[depth * width] = {};
  V sum[tile_rows][tile_vectors] = {};
  for (int64_t round = 0; round < rounds; ++round) {
    add_product<true>(sum, rows, depth, columns, width, depth);
    // The compiler must not see that the next round adds the same.
    asm volatile("" : : "r"(rows), "r"(columns) : "memory");
  }
  for (int row = 0; row < tile_rows; ++row) {
    for (int n = 0; n < tile_vectors; ++n) asm volatile("" : : "x"(sum[row][n]));
  }
  return rounds * 2 * 2 * tile_rows * width * depth;
}

}  // namespace

namespace avx512_bf16 {

LimitKernel limit_kernel() { return &multiply_half_tile; }

}  // namespace avx512_bf16
}  // namespace sslfast
