#pragma once
// Our own invariants, which the Python layer has checked already; a failure here means a direct call of the raw op.
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace sslfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_matrix(const char* op, const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.dim() == 2, op, ": ", name, " must have two dimensions, got ", tensor.dim());
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float || tensor.scalar_type() == ScalarType::Double, op, ": ",
                  name, " must be float32 or float64");
}

inline void check_like(const char* op, const char* name, const Tensor& tensor, const Tensor& model, int64_t dim) {
  STD_TORCH_CHECK(tensor.scalar_type() == model.scalar_type(), op, ": ", name, " must have the dtype of the rows");
  STD_TORCH_CHECK(tensor.device() == model.device(), op, ": ", name, " must be on the device of the rows");
  STD_TORCH_CHECK(tensor.dim() == dim, op, ": ", name, " must have ", dim, " dimensions, got ", tensor.dim());
  for (int64_t axis = 0; axis < dim; ++axis) {
    STD_TORCH_CHECK(tensor.size(axis) == model.size(axis), op, ": ", name, " has ", tensor.size(axis),
                    " entries along dimension ", axis, ", the rows have ", model.size(axis));
  }
}

}  // namespace sslfast
