// Every operator's schema, once. Kernels register themselves in the last lines of the file that holds them.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(sslfast, m) {
  // Rows scaled to length 1 (or divided by 1e-12 where they are shorter than that), and what they were scaled by.
  m.def("unit_rows_fwd(Tensor x) -> (Tensor unit, Tensor inverse_norm)");
  m.def("unit_rows_bwd(Tensor grad, Tensor unit, Tensor inverse_norm) -> Tensor");
  // z holds 2N rows; row i and row (i + N) mod 2N are views of one image. lse: log-sum-exp per row, not differentiable.
  m.def("nt_xent_fwd(Tensor z, float temperature) -> (Tensor loss, Tensor lse)");
  m.def("nt_xent_bwd(Tensor grad, Tensor z, Tensor lse, float temperature) -> Tensor");
  // Bits of the widest vectors that the CPU kernels use; a positive `most` sets a limit, 0 only asks.
  m.def("cpu_vector_bits(int most) -> int");
}
