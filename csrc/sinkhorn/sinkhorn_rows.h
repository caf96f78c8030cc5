#pragma once
// What the Sinkhorn drivers ask of one capability's kernels (sinkhorn_rows.cpp). Everything is in base 2:
// t_bk = `scale` x_bk with scale = log2(e) / epsilon, and a potential is a binary logarithm.
#include <cstdint>

namespace sslfast {

// Rows of scores, one below the other.
template <typename T>
struct ScoreRows {
  const T* scores;
  int64_t rows;
  int64_t columns;
  T scale;
};

template <typename T>
struct SinkhornKernels {
  // For columns [begin, end), which starts at whole vectors: how large t_bk gets, guessed from a few rows.
  void (*guess_shift)(const ScoreRows<T>&, int64_t begin, int64_t end, T* shift);
  // sums_k = sum_b 2^(t_bk - shift_k); false where that is so large that all blocks together might overflow.
  bool (*shifted_column_sums)(const ScoreRows<T>&, const T* shift, T* sums);
  // highest_k = max_b t_bk (at least the lowest finite number), sums_k = sum_b 2^(t_bk - highest_k).
  void (*column_sums)(const ScoreRows<T>&, T* highest, T* sums);
  // sums_k = sum_b p_bk, where p_b is the soft-max over k of t_bk - potential_k. `row` holds one row.
  void (*probability_sums)(const ScoreRows<T>&, const T* potential, T* row, T* sums);
  // Of the sums of `count` blocks, rows that are `width` apart, over columns [begin, end): their total; log2 of their
  // total, added to `potential`; highest + log2 of the total of 2^(highest_block - highest) sums, of their highest too.
  void (*add)(const T* sums, int64_t count, int64_t width, int64_t begin, int64_t end, T* total);
  void (*add_logarithm)(const T* sums, int64_t count, int64_t width, int64_t begin, int64_t end, T* potential);
  void (*add_scaled)(const T* highest, const T* sums, int64_t count, int64_t width, int64_t begin, int64_t end,
                     T* potential);
  // p_bk itself, row by row; `streamed` where it will not stay in the caches.
  void (*probabilities)(const ScoreRows<T>&, const T* potential, T* row, T* result, bool streamed);
  // 2^(t_bk - potential_k).
  void (*exponentials)(const ScoreRows<T>&, const T* potential, T* result);
};

namespace portable {
template <typename T>
SinkhornKernels<T> sinkhorn_kernels();
}
namespace avx2 {
template <typename T>
SinkhornKernels<T> sinkhorn_kernels();
}
namespace avx512 {
template <typename T>
SinkhornKernels<T> sinkhorn_kernels();
}

}  // namespace sslfast
