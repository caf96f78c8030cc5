// Two broken operators in the stable ABI, for tests/test_gates.py: each writes every element but the last.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace {

using torch::stable::Tensor;

Tensor twice_but_one(const Tensor& x, Tensor result) {
  for (int64_t k = 0; k + 1 < x.numel(); ++k) {
    result.mutable_data_ptr<double>()[k] = 2 * x.const_data_ptr<double>()[k];
  }
  return result;
}

Tensor with_empty_like(const Tensor& x) { return twice_but_one(x, torch::stable::empty_like(x)); }

Tensor with_new_empty(const Tensor& x) { return twice_but_one(x, torch::stable::new_empty(x, {x.size(0)})); }

}  // namespace

STABLE_TORCH_LIBRARY(sslfast_unwritten, m) {
  m.def("with_empty_like(Tensor x) -> Tensor");
  m.def("with_new_empty(Tensor x) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sslfast_unwritten, CPU, m) {
  m.impl("with_empty_like", TORCH_BOX(&with_empty_like));
  m.impl("with_new_empty", TORCH_BOX(&with_new_empty));
}
