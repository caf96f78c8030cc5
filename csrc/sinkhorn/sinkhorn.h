#pragma once
// The potentials of Sinkhorn-Knopp, for the two operators that need them.
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "sinkhorn_rows.h"
#include "sslfast/capability.h"

namespace sslfast {

using torch::stable::Tensor;

template <typename T>
SinkhornKernels<T> sinkhorn_kernels() {
  return SSLFAST_CHOOSE(sinkhorn_kernels<T>);
}

constexpr double binary_logarithm_of_e = 1.4426950408889634;

// Vectors are loaded whole from our own rows, wherever in a row they start.
inline int64_t padded(int64_t columns) { return (columns + 31) / 16 * 16; }

// Memory of one task: aligned to a cache line, not initialised, freed with the object.
template <typename T>
class AlignedRow {
 public:
  explicit AlignedRow(int64_t count)
      : data_(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64}))) {}
  T* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* data) const { ::operator delete(data, std::align_val_t{64}); }
  };
  std::unique_ptr<T, Free> data_;
};

// A result that the last-level cache can hardly hold beside the scores is written past it.
constexpr int64_t bytes_to_stream = int64_t{16} << 20;

// Small problems stay on one thread: waking the others costs more.
inline int64_t blocks_per_task(int64_t numbers_per_block) {
  return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, numbers_per_block));
}

// Rows whose columns are summed together: a function of the shape alone, so that results do not depend on threads.
inline int64_t rows_per_block(int64_t rows) { return std::clamp<int64_t>((rows + 127) / 128 * 16, 16, 64); }

// One set of scores that is normalised together: the rows of several tensors, (rows, columns) each.
template <typename T>
using ScoreParts = std::vector<ScoreRows<T>>;

// What t_bk is reduced by, in base 2, per set and prototype, to potentials[set * padded(columns) + k]: the assignments
// are the soft-max over k of t - potential. Without iterations they are 2^(t - potential) itself. Room beyond `columns`
// is left as it is; it must hold finite numbers.
template <typename T>
void sinkhorn_potentials(const std::vector<ScoreParts<T>>& sets, int64_t iterations, T* potentials, const Tensor& like);

}  // namespace sslfast
