// The register tile of our matrix products on its own, compiled once per capability.
#include "limit.h"
#include "sslfast/multiply.h"

namespace sslfast {
namespace {

// 12 x 128 and 128 x 32 floats are 22 KB: less than any first-level cache of the last ten years holds.
constexpr int depth = 128;

int64_t multiply_tile(int64_t rounds) {
  constexpr int panel = panel_columns<float>;
  alignas(64) float rows[group_rows * depth];
  alignas(64) float columns[depth * panel];
  alignas(64) float product[group_rows * panel];
  for (float& one : rows) one = 1e-3f;
  for (float& one : columns) one = 1e-3f;
  for (float& one : product) one = 0;
  for (int64_t round = 0; round < rounds; ++round) {
    multiply<true>(rows, depth, 1, columns, panel, depth, product, panel);
    // The compiler must not see that the next round adds the same.
    asm volatile("" : : "r"(product), "r"(rows), "r"(columns) : "memory");
  }
  return rounds * 2 * group_rows * panel * depth;
}

}  // namespace

namespace SSLFAST_CAPABILITY {

LimitKernel limit_kernel() { return &multiply_tile; }

}  // namespace SSLFAST_CAPABILITY
}  // namespace sslfast
