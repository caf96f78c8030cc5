#pragma once
// What every CUDA launcher needs: PyTorch's current stream, and an error as soon as a launch is refused.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

namespace sslfast {

// A symbol of libtorch_cuda; the one in libtorch_cpu needs torch 2.13.
inline cudaStream_t current_stream(const torch::stable::Tensor& tensor) {
  void* stream = nullptr;
  const auto status = aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream);
  STD_TORCH_CHECK(status == 0, "torch gave no CUDA stream");  // torch 2.11 has no macro for this
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, op, ": the kernel was not launched: ", cudaGetErrorString(error));
}

}  // namespace sslfast
