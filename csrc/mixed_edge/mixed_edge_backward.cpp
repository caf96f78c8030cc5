// Backward: sums of the gradient with depthwise outputs and pools, which hold every batch normalisation's two sums, the
// gradients of alpha and those of the pointwise weights; then, likewise, through the second halves of the separable
// convolutions; then everything back to the input.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "mixed_edge_norms.h"
#include "mixed_edge_passes.h"

namespace sslfast {
namespace {

template <typename T>
class Backward {
 public:
  Backward(const EdgeProblem<T>& problem, const T* grad, T* grad_lanes, T* chained, T* of_x, T* of_alpha, T* of_weights)
      : problem_(problem),
        plan_(problem.plan),
        kernels_(problem.kernels),
        saved_(problem.saved()),
        grad_(grad),
        grad_lanes_(grad_lanes),
        chained_(chained),
        of_x_(of_x),
        of_alpha_(of_alpha),
        pulls_(plan_.units.size()),
        sums_(plan_.units.size(), std::vector<Sums>(plan_.groups)),
        own_sums_(plan_.groups) {
    for (const int64_t size : plan_.weight_sizes) {
      of_weights_.push_back(of_weights);
      of_weights += size;
    }
    chains_.assign(plan_.units.size(), -1);
    int64_t chains = 0;
    for (size_t i = 0; i < plan_.units.size(); ++i) {
      if (plan_.units[i].next >= 0) chains_[i] = chains++;
    }
    for (std::vector<Sums>& groups : sums_) {
      const EdgeUnit& unit = plan_.units[&groups - sums_.data()];
      for (Sums& one : groups) {
        one.products.assign(unit.outputs * plan_.c, 0);
        one.grads.assign(unit.outputs, 0);
        one.weights.assign(unit.depthwise < 0 ? 0 : plan_.c * unit.size * unit.size, 0);
      }
    }
  }

  void run() {
    const auto phase = [&](auto body) {
      torch::stable::parallel_for(0, plan_.groups, 1, [&](int64_t begin, int64_t end) {
        for (int64_t group = begin; group < end; ++group) body(group);
      });
    };
    phase([&](int64_t group) { sum_up(group); });
    std::fill_n(of_alpha_, alphas_, T(0));
    pull_all([](const EdgeUnit& unit) { return unit.next < 0; });
    pull_own();
    if (std::any_of(chains_.begin(), chains_.end(), [](int64_t chain) { return chain >= 0; })) {
      phase([&](int64_t group) { chain(group); });
      pull_all([](const EdgeUnit& unit) { return unit.next >= 0; });
    }
    phase([&](int64_t group) { to_input(group); });
    for (size_t i = 0; i < plan_.units.size(); ++i) {
      if (plan_.units[i].depthwise < 0) continue;
      T* to = of_weights_[plan_.units[i].depthwise];
      for (size_t n = 0; n < sums_[i][0].weights.size(); ++n) {
        double total = 0;
        for (const Sums& one : sums_[i]) total += one.weights[n];
        to[n] = static_cast<T>(total);
      }
    }
  }

 private:
  static constexpr int64_t L = edge_lanes<T>;

  // Of one unit and one group.
  struct Sums {
    std::vector<double> products, grads, weights;
  };
  // Of one group: of the gradient of each channel, and of its products with pools (less their means) and the skip.
  struct OwnSums {
    std::vector<double> grads, pools, skip;
  };

  T* grad_plane(int64_t group, int64_t channel) const {
    return grad_lanes_ + (group * plan_.c + channel) * plan_.inner() * L;
  }
  T* chained_plane(int64_t unit, int64_t group, int64_t channel) const {
    return chained_ + ((chains_[unit] * plan_.groups + group) * plan_.c + channel) * plan_.inner() * L;
  }
  // The gradient of what a unit makes.
  T* output_grad(int64_t unit, int64_t group, int64_t channel) const {
    return chains_[unit] < 0 ? grad_plane(group, channel) : chained_plane(unit, group, channel);
  }

  // The kept part of the skip's input, or all of it.
  const T* skipped(int64_t group, int64_t channel, T* scratch) const {
    const T* input = saved_.input(group, channel);
    if (problem_.skip_mask == nullptr) return input;
    mask(group, channel, scratch);
    kernels_.multiply(input, scratch, plan_.inner(), scratch);
    return scratch;
  }
  void mask(int64_t group, int64_t channel, T* to) const {
    const int64_t inner = plan_.inner();
    kernels_.to_lanes(problem_.skip_mask + problem_.first_of(group, plan_.c, inner) + channel * inner, plan_.c * inner,
                      problem_.images(group), inner, to);
  }

  void multiply_up(int64_t index, int64_t group, EdgeArena<T>& arena) {
    const EdgeUnit& unit = plan_.units[index];
    std::vector<const T*> left, right;
    for (int64_t o = 0; o < unit.outputs; ++o) left.push_back(output_grad(index, group, unit.first + o));
    for (int64_t i = 0; i < plan_.c; ++i) right.push_back(saved_.unit(index, group, i));
    Sums& sums = sums_[index][group];
    kernels_.products({left.data(), unit.outputs, right.data(), plan_.c, saved_.centre(index), false, plan_.inner(),
                       problem_.images(group), arena.take(unit.outputs * (plan_.c + 1)), sums.products.data(),
                       sums.grads.data()});
  }

  int64_t product_pieces() const { return static_cast<int64_t>(plan_.units.size()) * plan_.c * (plan_.c + 1); }

  void sum_up(int64_t group) {
    const int64_t c = plan_.c, inner = plan_.inner(), images = problem_.images(group);
    EdgeArena<T> arena(product_pieces() + inner);
    const T* from = grad_ + problem_.first_of(group, plan_.channels, inner);
    OwnSums& own = own_sums_[group];
    T* scratch = arena.take(inner);
    for (int64_t channel = 0; channel < c; ++channel) {
      T* plane = grad_plane(group, channel);
      kernels_.to_lanes(from + channel * plan_.k * inner, plan_.channels * inner, images, inner, plane);
      own.grads.push_back(kernels_.sum(plane, inner, 1, images));
      for (size_t i = 0; i < plan_.pools.size(); ++i) {
        own.pools.push_back(kernels_.dot(plane, saved_.pool(static_cast<int64_t>(i), group, channel),
                                         problem_.means(plan_.pools[i].norm)[channel], inner, images));
      }
      if (plan_.skip >= 0) {
        own.skip.push_back(kernels_.dot(plane, skipped(group, channel, scratch), T(0), inner, images));
      }
    }
    for (size_t i = 0; i < plan_.units.size(); ++i) {
      if (plan_.units[i].next < 0) multiply_up(static_cast<int64_t>(i), group, arena);
    }
  }

  template <typename Chosen>
  void pull_all(const Chosen& chosen) {
    std::vector<double> of_alpha(alphas_);
    for (size_t i = 0; i < plan_.units.size(); ++i) {
      const EdgeUnit& unit = plan_.units[i];
      if (!chosen(unit)) continue;
      std::vector<double> products(unit.outputs * plan_.c), grads(unit.outputs);
      for (const Sums& one : sums_[i]) {
        for (size_t n = 0; n < products.size(); ++n) products[n] += one.products[n];
        for (size_t n = 0; n < grads.size(); ++n) grads[n] += one.grads[n];
      }
      const int64_t index = static_cast<int64_t>(i);
      const double scale = unit.next < 0 ? static_cast<double>(problem_.alpha[unit.primitive]) : 1.0;
      pulls_[i] = pull(plan_, unit, problem_.weights[unit.pointwise], problem_.means(unit.norm),
                       problem_.variances(unit.norm), saved_.centre(index), saved_.covariance(index), products, grads,
                       problem_.eps, scale, problem_.batch, of_weights_[unit.pointwise]);
      of_alpha[unit.primitive] += pulls_[i].alpha;
    }
    for (const EdgeUnit& unit : plan_.units) {
      if (unit.next < 0 && chosen(unit)) of_alpha_[unit.primitive] = static_cast<T>(of_alpha[unit.primitive]);
    }
  }

  void pull_own() {
    const int64_t c = plan_.c, pools = static_cast<int64_t>(plan_.pools.size());
    pool_factors_.resize(pools * c * 3);
    for (int64_t i = 0; i < pools; ++i) {
      const EdgePool& pool = plan_.pools[i];
      double of_alpha = 0;
      for (int64_t channel = 0; channel < c; ++channel) {
        double product = 0, grads = 0;
        for (const OwnSums& one : own_sums_) {
          product += one.pools[channel * pools + i];
          grads += one.grads[channel];
        }
        const double inverse =
            1 / std::sqrt(static_cast<double>(problem_.variances(pool.norm)[channel]) + problem_.eps);
        const double share = inverse * product, of_grad = problem_.alpha[pool.primitive] * inverse;
        const double of_value = problem_.batch ? -of_grad * inverse * share / plan_.numbers() : 0;
        const double constant = problem_.batch ? -of_grad * grads / plan_.numbers() : 0;
        T* factors = pool_factors_.data() + (i * c + channel) * 3;
        factors[0] = static_cast<T>(of_grad);
        factors[1] = static_cast<T>(constant - of_value * problem_.means(pool.norm)[channel]);
        factors[2] = static_cast<T>(of_value);
        of_alpha += share;
      }
      of_alpha_[pool.primitive] = static_cast<T>(of_alpha);
    }
    if (plan_.skip >= 0) {
      double of_alpha = 0;
      for (const OwnSums& one : own_sums_) {
        for (const double share : one.skip) of_alpha += share;
      }
      of_alpha_[plan_.skip] = static_cast<T>(of_alpha);
    }
  }

  // The gradient of a unit's depthwise outputs, within frames.
  void pull_back(int64_t index, int64_t group, const std::vector<T*>& origins) {
    const EdgeUnit& unit = plan_.units[index];
    std::vector<const T*> in;
    for (int64_t o = 0; o < unit.outputs; ++o) in.push_back(output_grad(index, group, unit.first + o));
    for (int64_t i = 0; i < plan_.c && problem_.batch; ++i) in.push_back(saved_.unit(index, group, i));
    const EdgePull<T>& pulled = pulls_[index];
    kernels_.mix({in.data(), static_cast<int64_t>(in.size()), pulled.coefficients.data(), nullptr, 0, nullptr,
                  pulled.bias.data(), origins.data(), plan_.c, plan_.inner_rows, plan_.inner_columns,
                  framed_columns(plan_.inner_columns), false});
  }

  // The gradients of a unit's depthwise weights, and of one channel of its input, added to `plane`.
  void convolve_back(int64_t index, int64_t group, int64_t channel, const T* input, int64_t input_framed, T* of_output,
                     T* plane, int64_t rows, int64_t columns, T* scratch, bool add) {
    const EdgeUnit& unit = plan_.units[index];
    const int64_t framed = framed_columns(plan_.inner_columns), taps = unit.size * unit.size;
    const T* weights = unit.depthwise < 0 ? nullptr : problem_.weights[unit.depthwise] + channel * taps;
    if (weights != nullptr) {
      std::fill_n(scratch, taps * L, T(0));
      each_window<T>(unit, input, input_framed, of_output, framed, plan_.inner_rows, plan_.inner_columns,
                     [&](int64_t size, int64_t, int64_t stride, const EdgeWindow<T>& window) {
                       kernels_.weigh(size, stride, window, scratch);
                     });
      for (int64_t tap = 0; tap < taps; ++tap) {
        double total = 0;
        for (int64_t image = 0; image < problem_.images(group); ++image) total += scratch[tap * L + image];
        sums_[index][group].weights[channel * taps + tap] = total;
      }
    }
    each_window_back<T>(unit, weights, of_output, framed, plane, rows, columns,
                        [&](int64_t height, int64_t width, const EdgeWindow<T>& window, const T* own) {
                          kernels_.correlate(height, width, 1, window, own, add);
                        });
  }

  void chain(int64_t group) {
    const int64_t c = plan_.c, rows = plan_.inner_rows, columns = plan_.inner_columns;
    EdgeArena<T> arena(2 * c * framed_pieces(rows, columns) + 25 + product_pieces());
    const std::vector<T*> inputs = arena.frames(c, rows, columns), grads = arena.frames(c, rows, columns);
    T* scratch = arena.take(25);
    for (size_t i = 0; i < plan_.units.size(); ++i) {
      const int64_t index = static_cast<int64_t>(i), before = plan_.units[i].input;
      if (before < 0) continue;
      normalised_positive_part(problem_, before, group, inputs);
      pull_back(index, group, grads);
      for (int64_t channel = 0; channel < c; ++channel) {
        T* plane = chained_plane(before, group, channel);
        convolve_back(index, group, channel, inputs[channel], framed_columns(columns), grads[channel], plane, rows,
                      columns, scratch, false);
        kernels_.clear_where_not_positive(inputs[channel], framed_columns(columns), rows, columns, plane);
      }
      multiply_up(before, group, arena);
    }
  }

  void to_input(int64_t group) {
    const int64_t c = plan_.c, rows = plan_.rows, columns = plan_.columns, positions = plan_.positions();
    const int64_t images = problem_.images(group), inner = plan_.inner();
    EdgeArena<T> arena(c * (framed_pieces(plan_.inner_rows, plan_.inner_columns) + positions) +
                       framed_pieces(rows, columns) + 25 + collected_pieces(rows, columns) + inner);
    const std::vector<T*> grads = arena.frames(c, plan_.inner_rows, plan_.inner_columns);
    T* input = arena.frames(1, rows, columns)[0];
    const std::vector<T*> planes = arena.planes(c, positions);
    T *scratch = arena.take(25), *row = arena.take(collected_pieces(rows, columns)), *masked = arena.take(inner);
    // A convolution of stride 1 writes all of its input's gradient; another one only adds to some of it.
    bool written = false;
    const auto begin = [&](bool whole) {
      for (T* plane : planes) {
        if (!whole && !written) std::fill_n(plane, positions * L, T(0));
      }
      return std::exchange(written, true);
    };
    for (size_t i = 0; i < plan_.units.size(); ++i) {
      const int64_t index = static_cast<int64_t>(i);
      if (plan_.units[i].input >= 0) continue;
      pull_back(index, group, grads);
      const bool add = begin(plan_.stride == 1) || plan_.stride == 2;
      for (int64_t channel = 0; channel < c; ++channel) {
        kernels_.positive_part(saved_.input(group, channel), rows, columns, input, framed_columns(columns));
        convolve_back(index, group, channel, input, framed_columns(columns), grads[channel], planes[channel], rows,
                      columns, scratch, add);
      }
    }
    begin(false);
    T* to = of_x_ + problem_.first_of(group, plan_.channels, positions);
    for (int64_t channel = 0; channel < c; ++channel) {
      const T* x = saved_.input(group, channel);
      T* plane = planes[channel];
      kernels_.clear_where_not_positive(x, columns, rows, columns, plane);
      pools_back(group, channel, row, plane);
      if (plan_.skip >= 0) {
        const T* from = grad_plane(group, channel);
        if (problem_.skip_mask != nullptr) {
          mask(group, channel, masked);
          kernels_.multiply(from, masked, inner, masked);
          from = masked;
        }
        kernels_.add_scaled(from, problem_.alpha[plan_.skip], inner, plane);
      }
      kernels_.from_lanes(plane, plan_.channels * positions, images, positions, to + channel * positions);
    }
    pass_by(group, images, to);
  }

  void pools_back(int64_t group, int64_t channel, T* row, T* plane) {
    if (plan_.pools.empty()) return;
    EdgePoolsBackward<T> job{saved_.input(group, channel),
                             grad_plane(group, channel),
                             plan_.rows,
                             plan_.columns,
                             plan_.stride,
                             row,
                             nullptr,
                             {},
                             nullptr,
                             {},
                             plane};
    for (size_t i = 0; i < plan_.pools.size(); ++i) {
      const int64_t index = static_cast<int64_t>(i);
      const T* pooled = saved_.pool(index, group, channel);
      const T* factors = pool_factors_.data() + (index * plan_.c + channel) * 3;
      (plan_.pools[i].largest ? job.largest : job.average) = pooled;
      std::copy_n(factors, 3, plan_.pools[i].largest ? job.largest_factors : job.average_factors);
    }
    kernels_.pools_backward(job);
  }

  void pass_by(int64_t group, int64_t images, T* to) {
    const int64_t positions = plan_.positions(), inner = plan_.inner();
    const T* x = problem_.x + problem_.first_of(group, plan_.channels, positions);
    const T* from = grad_ + problem_.first_of(group, plan_.channels, inner);
    for (int64_t image = 0; image < images; ++image) {
      for (int64_t g = 1; g < plan_.k; ++g) {
        for (int64_t j = 0; j < plan_.c; ++j) {
          const T* source = from + (image * plan_.channels + j * plan_.k + g) * inner;
          const int64_t at = (image * plan_.channels + g * plan_.c + j) * positions;
          if (plan_.stride == 1) {
            std::memcpy(to + at, source, static_cast<size_t>(inner) * sizeof(T));
          } else {
            kernels_.halve_backward(source, x + at, plan_.rows, plan_.columns, to + at);
          }
        }
      }
    }
  }

  const EdgeProblem<T>& problem_;
  const EdgePlan& plan_;
  const EdgeKernels<T>& kernels_;
  EdgeSaved<T> saved_;
  const T* grad_;
  T *grad_lanes_, *chained_, *of_x_, *of_alpha_;
  std::vector<T*> of_weights_;
  std::vector<int64_t> chains_;  // which of the chained gradients a unit's outputs have; -1: the edge's
  std::vector<EdgePull<T>> pulls_;
  std::vector<std::vector<Sums>> sums_;
  std::vector<OwnSums> own_sums_;
  std::vector<T> pool_factors_;
  const int64_t alphas_ = problem_.plan.primitives;
};

}  // namespace

template <typename T>
void edge_backward(const EdgeProblem<T>& problem, const T* grad, T* grad_lanes, T* chained, T* of_x, T* of_alpha,
                   T* of_weights) {
  Backward<T>(problem, grad, grad_lanes, chained, of_x, of_alpha, of_weights).run();
}

template void edge_backward<float>(const EdgeProblem<float>&, const float*, float*, float*, float*, float*, float*);
template void edge_backward<double>(const EdgeProblem<double>&, const double*, double*, double*, double*, double*,
                                    double*);

}  // namespace sslfast
