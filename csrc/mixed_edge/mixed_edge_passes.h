#pragma once
// The two passes of a mixed edge.
#include <vector>

#include "mixed_edge_plan.h"

namespace sslfast {

template <typename T>
struct EdgeProblem {
  EdgePlan plan;
  EdgeKernels<T> kernels;
  double eps;
  bool batch;  // statistics are the batch's own
  const T* x;
  const T* alpha;
  std::vector<const T*> weights;
  const T* skip_mask;  // or null
  T* statistics;       // (norms, 2, c)
  EdgeSaved<T> saved() const { return {plan, kept}; }
  T* kept;

  T* means(int64_t norm) const { return statistics + 2 * norm * plan.c; }
  T* variances(int64_t norm) const { return means(norm) + plan.c; }
  // Where a group's images begin in a tensor of `channels` planes of `positions` numbers.
  static int64_t first_of(int64_t group, int64_t channels, int64_t positions) {
    return group * edge_lanes<T> * channels * positions;
  }
  int64_t images(int64_t group) const { return plan.images(group, edge_lanes<T>); }
};

// The positive part of a unit's normalised outputs, into frames.
template <typename T>
void normalised_positive_part(const EdgeProblem<T>& problem, int64_t unit, int64_t group,
                              const std::vector<T*>& origins);

template <typename T>
void edge_forward(const EdgeProblem<T>& problem, T* out);

// grad_lanes: (groups, c) inner planes of scratch; chained: as many for each unit that has a next one.
template <typename T>
void edge_backward(const EdgeProblem<T>& problem, const T* grad, T* grad_lanes, T* chained, T* of_x, T* of_alpha,
                   T* of_weights);

}  // namespace sslfast
