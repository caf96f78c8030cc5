// Forward: depthwise convolutions and pools of all channels of a group; with the batch's sums known, the second halves
// of the separable convolutions; then everything mixed, and shuffled with the channels that pass by.
#include <torch/csrc/stable/ops.h>

#include <cstring>

#include "mixed_edge_norms.h"
#include "mixed_edge_passes.h"

namespace sslfast {
namespace {

template <typename T>
class Forward {
 public:
  Forward(const EdgeProblem<T>& problem, T* out)
      : problem_(problem),
        plan_(problem.plan),
        kernels_(problem.kernels),
        saved_(problem.saved()),
        out_(out),
        unit_moments_(plan_.units.size(), std::vector<EdgeMoments>(plan_.groups, EdgeMoments(plan_.c))),
        pool_moments_(plan_.pools.size(), std::vector<EdgeMoments>(plan_.groups, EdgeMoments(plan_.c))) {}

  void run() {
    torch::stable::parallel_for(0, plan_.groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) first_phase(group);
    });
    finish_pools();
    bool chained = false;
    for (size_t i = 0; i < plan_.units.size(); ++i) {
      if (plan_.units[i].input < 0) finish_unit(static_cast<int64_t>(i));
      chained = chained || plan_.units[i].input >= 0;
    }
    if (chained) {
      torch::stable::parallel_for(0, plan_.groups, 1, [&](int64_t begin, int64_t end) {
        for (int64_t group = begin; group < end; ++group) second_phase(group);
      });
      for (size_t i = 0; i < plan_.units.size(); ++i) {
        if (plan_.units[i].input >= 0) finish_unit(static_cast<int64_t>(i));
      }
    }
    prepare_mixture();
    torch::stable::parallel_for(0, plan_.groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) third_phase(group);
    });
  }

 private:
  static constexpr int64_t L = edge_lanes<T>;

  const T* weight(int64_t place) const { return problem_.weights[place]; }

  void convolve(const EdgeUnit& unit, int64_t index, int64_t group, int64_t channel, const T* origin, int64_t framed) {
    const T one = 1;
    const T* weights = unit.depthwise < 0 ? &one : weight(unit.depthwise) + channel * unit.size * unit.size;
    each_window<T>(unit, origin, framed, saved_.unit(index, group, channel), plan_.inner_columns, plan_.inner_rows,
                   plan_.inner_columns,
                   [&](int64_t height, int64_t width, int64_t stride, const EdgeWindow<T>& window) {
                     kernels_.correlate(height, width, stride, window, weights, false);
                   });
  }

  // About a plane's mean: subtracted before squares are summed, so that a large mean does not cancel a variance.
  T guess(const T* plane, int64_t images) const {
    const double sum = kernels_.sum(plane, plan_.inner(), plan_.sample_step(), images);
    return static_cast<T>(sum / static_cast<double>(images * plan_.samples()));
  }

  void measure(int64_t index, int64_t group, EdgeArena<T>& arena) {
    if (!problem_.batch) return;
    const int64_t c = plan_.c, images = problem_.images(group);
    EdgeMoments& moments = unit_moments_[index][group];
    std::vector<const T*> planes(c);
    std::vector<T> pivot(c);
    for (int64_t i = 0; i < c; ++i) {
      planes[i] = saved_.unit(index, group, i);
      pivot[i] = guess(planes[i], images);
      moments.pivot[i] = pivot[i];
    }
    kernels_.products({planes.data(), c, planes.data(), c, pivot.data(), true, plan_.inner(), images,
                       arena.take(c * c + c), moments.second.data(), moments.first.data()});
  }

  void first_phase(int64_t group) {
    const int64_t c = plan_.c, rows = plan_.rows, columns = plan_.columns, images = problem_.images(group);
    EdgeArena<T> arena(framed_pieces(rows, columns) + 2 * columns + measured_pieces());
    T* origin = arena.frames(1, rows, columns)[0];
    T* row = arena.take(2 * columns);
    T* pooled[2] = {nullptr, nullptr};
    bool convolved = false;
    for (const EdgeUnit& unit : plan_.units) convolved = convolved || unit.input < 0;
    for (int64_t channel = 0; channel < c; ++channel) {
      T* input = saved_.input(group, channel);
      const T* from = problem_.x + problem_.first_of(group, plan_.channels, plan_.positions());
      kernels_.to_lanes(from + channel * plan_.positions(), plan_.channels * plan_.positions(), images,
                        plan_.positions(), input);
      if (convolved) kernels_.positive_part(input, rows, columns, origin, framed_columns(columns));
      for (size_t i = 0; i < plan_.units.size(); ++i) {
        const EdgeUnit& unit = plan_.units[i];
        if (unit.input < 0) {
          convolve(unit, static_cast<int64_t>(i), group, channel, origin, framed_columns(columns));
        }
      }
      for (size_t i = 0; i < plan_.pools.size(); ++i) {
        pooled[plan_.pools[i].largest] = saved_.pool(static_cast<int64_t>(i), group, channel);
      }
      if (!plan_.pools.empty()) kernels_.pools({input, rows, columns, plan_.stride, row, pooled[1], pooled[0]});
      for (size_t i = 0; i < plan_.pools.size() && problem_.batch; ++i) {
        const T* plane = saved_.pool(static_cast<int64_t>(i), group, channel);
        EdgeMoments& moments = pool_moments_[i][group];
        const T pivot = guess(plane, images);
        moments.pivot[channel] = pivot;
        kernels_.squares(plane, pivot, plan_.inner(), images, &moments.first[channel], &moments.second[channel]);
      }
    }
    for (size_t i = 0; i < plan_.units.size(); ++i) {
      if (plan_.units[i].input < 0) measure(static_cast<int64_t>(i), group, arena);
    }
  }

  int64_t measured_pieces() const { return static_cast<int64_t>(plan_.units.size()) * (plan_.c * plan_.c + plan_.c); }

  void finish_pools() {
    if (!problem_.batch) return;
    for (size_t i = 0; i < plan_.pools.size(); ++i) {
      const int64_t norm = plan_.pools[i].norm;
      for (int64_t channel = 0; channel < plan_.c; ++channel) {
        double mean = 0, variance = 0;
        const auto each = [&](auto body) {
          for (int64_t group = 0; group < plan_.groups; ++group) {
            body(pool_moments_[i][group], static_cast<double>(problem_.images(group) * plan_.inner()));
          }
        };
        each([&](const EdgeMoments& one, double count) {
          mean += (count * one.pivot[channel] + one.first[channel]) / plan_.numbers();
        });
        each([&](const EdgeMoments& one, double count) {
          const double off = one.pivot[channel] - mean;
          variance += (one.second[channel] + 2 * off * one.first[channel] + count * off * off) / plan_.numbers();
        });
        problem_.means(norm)[channel] = static_cast<T>(mean);
        problem_.variances(norm)[channel] = static_cast<T>(variance < 0 ? 0 : variance);
      }
    }
  }

  void finish_unit(int64_t index) {
    const EdgeUnit& unit = plan_.units[index];
    T *centre = saved_.centre(index), *covariance = saved_.covariance(index);
    if (!problem_.batch) {
      for (int64_t i = 0; i < plan_.c + plan_.c * plan_.c; ++i) centre[i] = 0;
      return;
    }
    std::vector<double> mean, spread;
    combine_moments<T>(plan_, unit_moments_[index], mean, spread);
    for (int64_t i = 0; i < plan_.c; ++i) centre[i] = static_cast<T>(mean[i]);
    for (int64_t i = 0; i < plan_.c * plan_.c; ++i) covariance[i] = static_cast<T>(spread[i]);
    project_moments(plan_, unit, weight(unit.pointwise), mean, spread, problem_.means(unit.norm),
                    problem_.variances(unit.norm));
  }

  void second_phase(int64_t group) {
    const int64_t c = plan_.c, rows = plan_.inner_rows, columns = plan_.inner_columns;
    EdgeArena<T> arena(c * framed_pieces(rows, columns) + measured_pieces());
    const std::vector<T*> origins = arena.frames(c, rows, columns);
    for (size_t i = 0; i < plan_.units.size(); ++i) {
      const EdgeUnit& unit = plan_.units[i];
      if (unit.input < 0) continue;
      normalised_positive_part(problem_, unit.input, group, origins);
      for (int64_t channel = 0; channel < c; ++channel) {
        convolve(unit, static_cast<int64_t>(i), group, channel, origins[channel], framed_columns(columns));
      }
      measure(static_cast<int64_t>(i), group, arena);
    }
  }

  // The two halves of a factorised reduce have different inputs, so that outputs are then mixed half by half.
  struct Part {
    int64_t first, outputs;
    std::vector<int64_t> units;
    std::vector<T> coefficients, own_coefficients, bias;
  };

  void prepare_mixture() {
    const int64_t c = plan_.c;
    bool halved = false;
    for (const EdgeUnit& unit : plan_.units) halved = halved || unit.outputs < c;
    const int64_t count = halved ? 2 : 1;
    std::vector<double> bias(c);
    std::vector<T> folded(c * c);
    for (int64_t part = 0; part < count; ++part) parts_.push_back({part * (c / 2), c / count, {}, {}, {}, {}});
    for (size_t i = 0; i < plan_.units.size(); ++i) {
      const EdgeUnit& unit = plan_.units[i];
      if (unit.next >= 0) continue;
      fold(plan_, unit, weight(unit.pointwise), problem_.means(unit.norm), problem_.variances(unit.norm), problem_.eps,
           problem_.alpha[unit.primitive], folded.data(), c, bias);
      for (Part& part : parts_) {
        if (part.first < unit.first || part.first >= unit.first + unit.outputs) continue;
        part.units.push_back(static_cast<int64_t>(i));
        for (int64_t input = 0; input < c; ++input) {
          const T* row = folded.data() + input * c + part.first;
          part.coefficients.insert(part.coefficients.end(), row, row + part.outputs);
        }
      }
    }
    for (const EdgePool& pool : plan_.pools) {
      for (int64_t i = 0; i < c; ++i) {
        const double variance = problem_.variances(pool.norm)[i];
        const double factor = problem_.alpha[pool.primitive] / std::sqrt(variance + problem_.eps);
        bias[i] -= factor * problem_.means(pool.norm)[i];
        part_of(i).own_coefficients.push_back(static_cast<T>(factor));
      }
    }
    for (int64_t i = 0; i < c; ++i) {
      if (plan_.skip >= 0) part_of(i).own_coefficients.push_back(problem_.alpha[plan_.skip]);
      part_of(i).bias.push_back(static_cast<T>(bias[i]));
    }
  }

  Part& part_of(int64_t channel) { return parts_[channel < parts_[0].outputs ? 0 : 1]; }

  void third_phase(int64_t group) {
    const int64_t c = plan_.c, inner = plan_.inner(), images = problem_.images(group);
    const bool masked = plan_.skip >= 0 && problem_.skip_mask != nullptr;
    EdgeArena<T> arena((masked ? 2 * c : c) * inner);
    const std::vector<T*> results = arena.planes(c, inner);
    std::vector<const T*> skipped;
    for (int64_t channel = 0; channel < c && masked; ++channel) {
      T* kept = arena.take(inner);
      kernels_.to_lanes(problem_.skip_mask + problem_.first_of(group, c, inner) + channel * inner, c * inner, images,
                        inner, kept);
      kernels_.multiply(saved_.input(group, channel), kept, inner, kept);
      skipped.push_back(kept);
    }
    for (const Part& part : parts_) {
      std::vector<const T*> in, own;
      for (const int64_t unit : part.units) {
        for (int64_t channel = 0; channel < c; ++channel) in.push_back(saved_.unit(unit, group, channel));
      }
      const int64_t end = part.first + part.outputs;
      for (size_t i = 0; i < plan_.pools.size(); ++i) {
        for (int64_t j = part.first; j < end; ++j) own.push_back(saved_.pool(static_cast<int64_t>(i), group, j));
      }
      for (int64_t j = part.first; j < end && plan_.skip >= 0; ++j) {
        own.push_back(masked ? skipped[j] : saved_.input(group, j));
      }
      kernels_.mix({in.data(), static_cast<int64_t>(in.size()), part.coefficients.data(), own.data(),
                    static_cast<int64_t>(own.size()) / part.outputs, part.own_coefficients.data(), part.bias.data(),
                    results.data() + part.first, part.outputs, plan_.inner_rows, plan_.inner_columns,
                    plan_.inner_columns, false});
    }
    T* to = out_ + problem_.first_of(group, plan_.channels, inner);
    for (int64_t channel = 0; channel < c; ++channel) {
      kernels_.from_lanes(results[channel], plan_.channels * inner, images, inner, to + channel * plan_.k * inner);
    }
    pass_by(group, images, to);
  }

  // Channel c g + j passes by and becomes channel k j + g.
  void pass_by(int64_t group, int64_t images, T* to) {
    const int64_t positions = plan_.positions(), inner = plan_.inner();
    const T* from = problem_.x + problem_.first_of(group, plan_.channels, positions);
    for (int64_t image = 0; image < images; ++image) {
      for (int64_t j = 0; j < plan_.c; ++j) {
        for (int64_t g = 1; g < plan_.k; ++g) {
          const T* source = from + (image * plan_.channels + g * plan_.c + j) * positions;
          T* target = to + (image * plan_.channels + j * plan_.k + g) * inner;
          if (plan_.stride == 1) {
            std::memcpy(target, source, static_cast<size_t>(inner) * sizeof(T));
          } else {
            kernels_.halve(source, plan_.rows, plan_.columns, target);
          }
        }
      }
    }
  }

  const EdgeProblem<T>& problem_;
  const EdgePlan& plan_;
  const EdgeKernels<T>& kernels_;
  EdgeSaved<T> saved_;
  T* out_;
  std::vector<std::vector<EdgeMoments>> unit_moments_, pool_moments_;
  std::vector<Part> parts_;
};

}  // namespace

template <typename T>
void normalised_positive_part(const EdgeProblem<T>& problem, int64_t index, int64_t group,
                              const std::vector<T*>& origins) {
  const EdgePlan& plan = problem.plan;
  const EdgeUnit& unit = plan.units[index];
  const int64_t c = plan.c;
  std::vector<T> coefficients(c * c), bias(c);
  std::vector<double> exact(c);
  fold(plan, unit, problem.weights[unit.pointwise], problem.means(unit.norm), problem.variances(unit.norm), problem.eps,
       1.0, coefficients.data(), c, exact);
  std::vector<const T*> in(c);
  for (int64_t i = 0; i < c; ++i) {
    in[i] = problem.saved().unit(index, group, i);
    bias[i] = static_cast<T>(exact[i]);
  }
  problem.kernels.mix({in.data(), c, coefficients.data(), nullptr, 0, nullptr, bias.data(), origins.data(), c,
                       plan.inner_rows, plan.inner_columns, framed_columns(plan.inner_columns), true});
}

template void normalised_positive_part<float>(const EdgeProblem<float>&, int64_t, int64_t, const std::vector<float*>&);
template void normalised_positive_part<double>(const EdgeProblem<double>&, int64_t, int64_t,
                                               const std::vector<double*>&);

template <typename T>
void edge_forward(const EdgeProblem<T>& problem, T* out) {
  Forward<T>(problem, out).run();
}

template void edge_forward<float>(const EdgeProblem<float>&, float*);
template void edge_forward<double>(const EdgeProblem<double>&, double*);

}  // namespace sslfast
