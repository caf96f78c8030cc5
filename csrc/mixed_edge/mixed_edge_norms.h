#pragma once
// Batch normalisations of what pointwise convolutions make of depthwise outputs u, by algebra: of y = W u the mean is
// W mean(u) and the variance the diagonal of W cov(u) W^T, so that y itself is never formed. All of it in float64.
#include <cmath>
#include <vector>

#include "mixed_edge_plan.h"

namespace sslfast {

// Sums of one group over its images and positions of u - pivot and of products of two of them.
struct EdgeMoments {
  std::vector<double> pivot, first, second;
  explicit EdgeMoments(int64_t c) : pivot(c), first(c), second(c * c) {}
};

// Means and covariances (c, c) of all groups together.
template <typename T>
void combine_moments(const EdgePlan& plan, const std::vector<EdgeMoments>& groups, std::vector<double>& mean,
                     std::vector<double>& covariance) {
  const int64_t c = plan.c;
  const double numbers = plan.numbers();
  mean.assign(c, 0);
  covariance.assign(c * c, 0);
  const auto count = [&](size_t g) {
    return static_cast<double>(plan.images(static_cast<int64_t>(g), edge_lanes<T>) * plan.inner());
  };
  for (size_t g = 0; g < groups.size(); ++g) {
    for (int64_t i = 0; i < c; ++i) mean[i] += (count(g) * groups[g].pivot[i] + groups[g].first[i]) / numbers;
  }
  std::vector<double> off(c);
  for (size_t g = 0; g < groups.size(); ++g) {
    const EdgeMoments& one = groups[g];
    for (int64_t i = 0; i < c; ++i) off[i] = one.pivot[i] - mean[i];
    for (int64_t i = 0; i < c; ++i) {
      for (int64_t j = 0; j < c; ++j) {
        covariance[i * c + j] +=
            (one.second[i * c + j] + one.first[i] * off[j] + off[i] * one.first[j] + count(g) * off[i] * off[j]) /
            numbers;
      }
    }
  }
}

// Writes a unit's part of its normalisation's statistics: means and variances of y.
template <typename T>
void project_moments(const EdgePlan& plan, const EdgeUnit& unit, const T* pointwise, const std::vector<double>& mean,
                     const std::vector<double>& covariance, T* means, T* variances) {
  const int64_t c = plan.c;
  for (int64_t o = 0; o < unit.outputs; ++o) {
    const T* weights = pointwise + o * c;
    double middle = 0, variance = 0;
    for (int64_t i = 0; i < c; ++i) {
      middle += weights[i] * mean[i];
      double along = 0;
      for (int64_t j = 0; j < c; ++j) along += covariance[i * c + j] * weights[j];
      variance += weights[i] * along;
    }
    means[unit.first + o] = static_cast<T>(middle);
    // Rounding may leave a variance of 0 below it; NaN stays.
    variances[unit.first + o] = static_cast<T>(variance < 0 ? 0 : variance);
  }
}

// u -> normalised outputs: coefficients (c, columns) from column `at` on, and bias, both times `scale`.
template <typename T>
void fold(const EdgePlan& plan, const EdgeUnit& unit, const T* pointwise, const T* means, const T* variances,
          double eps, double scale, T* coefficients, int64_t columns, std::vector<double>& bias) {
  for (int64_t o = 0; o < unit.outputs; ++o) {
    const int64_t channel = unit.first + o;
    const double factor = scale / std::sqrt(static_cast<double>(variances[channel]) + eps);
    for (int64_t i = 0; i < plan.c; ++i) {
      coefficients[i * columns + channel] = static_cast<T>(factor * pointwise[o * plan.c + i]);
    }
    bias[channel] -= factor * means[channel];
  }
}

// What the gradient G of a unit's normalised outputs, times `scale`, amounts to: the gradient of u is
// coefficients^T (G, u) + bias.
template <typename T>
struct EdgePull {
  std::vector<T> coefficients, bias;  // (outputs + c, c) or, with running statistics, (outputs, c); (c,)
  double alpha = 0;                   // sum of G times the normalised outputs
};

// products[o, i] = sum G_o (u_i - centre_i) and sums[o] = sum G_o.
template <typename T>
EdgePull<T> pull(const EdgePlan& plan, const EdgeUnit& unit, const T* pointwise, const T* means, const T* variances,
                 const T* centre, const T* covariance, const std::vector<double>& products,
                 const std::vector<double>& sums, double eps, double scale, bool batch, T* of_pointwise) {
  const int64_t c = plan.c, outputs = unit.outputs;
  const double numbers = plan.numbers();
  EdgePull<T> result;
  result.coefficients.assign((batch ? outputs + c : outputs) * c, 0);
  result.bias.assign(c, 0);
  std::vector<double> bias(c), quadratic(batch ? c * c : 0), along(c);
  for (int64_t o = 0; o < outputs; ++o) {
    const T* weights = pointwise + o * c;
    const double inverse = 1 / std::sqrt(static_cast<double>(variances[unit.first + o]) + eps);
    double projected = 0, middle = 0;
    for (int64_t i = 0; i < c; ++i) {
      projected += weights[i] * products[o * c + i];
      middle += static_cast<double>(weights[i]) * centre[i];
    }
    // Sum of G times the normalised output. With a batch's own statistics the two means are one.
    const double share = inverse * (projected + (batch ? 0 : (middle - means[unit.first + o]) * sums[o]));
    result.alpha += share;
    const double of_grad = scale * inverse;
    const double constant = batch ? -of_grad * sums[o] / numbers : 0;
    const double of_value = batch ? -of_grad * inverse * share / numbers : 0;
    for (int64_t i = 0; i < c; ++i) {
      result.coefficients[o * c + i] = static_cast<T>(of_grad * weights[i]);
      double gradient = of_grad * (products[o * c + i] + (batch ? 0 : centre[i] * sums[o]));
      if (batch) {
        double carried = 0;
        for (int64_t j = 0; j < c; ++j) carried += weights[j] * static_cast<double>(covariance[j * c + i]);
        gradient += of_value * carried * numbers;
        bias[i] += constant * weights[i];
        for (int64_t j = 0; j < c; ++j) {
          quadratic[i * c + j] += of_value * static_cast<double>(weights[i]) * weights[j];
        }
      }
      of_pointwise[o * c + i] = static_cast<T>(gradient);
    }
  }
  for (int64_t i = 0; i < c && batch; ++i) {
    for (int64_t j = 0; j < c; ++j) {
      bias[i] -= quadratic[i * c + j] * centre[j];
      result.coefficients[(outputs + j) * c + i] = static_cast<T>(quadratic[i * c + j]);
    }
  }
  for (int64_t i = 0; i < c; ++i) result.bias[i] = static_cast<T>(bias[i]);
  return result;
}

}  // namespace sslfast
