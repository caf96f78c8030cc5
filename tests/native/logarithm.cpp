// Prints the largest relative errors of logarithm and power_of_two over every mantissa of several powers of two, and
// what they make of the ends of their ranges.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <limits>

#include "sslfast/vector.h"

using sslfast::Vector;
constexpr int lanes = Vector<float>::lanes;

template <typename Function>
float one(const Function& function, float x) {
  return function(sslfast::splat(x))[lanes - 1];
}

template <typename Function, typename Truth>
double largest_error(float from, float to, const Function& function, const Truth& truth) {
  uint32_t first, last;
  std::memcpy(&first, &from, 4);
  std::memcpy(&last, &to, 4);
  double worst = 0;
  for (uint32_t bits = first; bits < last; bits += lanes) {
    float x[lanes], value[lanes];
    for (int lane = 0; lane < lanes; ++lane) {
      const uint32_t own = bits + lane;
      std::memcpy(x + lane, &own, 4);
    }
    sslfast::store(value, function(sslfast::load(x)));
    for (int lane = 0; lane < lanes; ++lane) {
      const double right = truth(static_cast<double>(x[lane]));
      const double error = right == 0 ? std::fabs(value[lane]) : std::fabs(value[lane] / right - 1);
      if (!(error <= worst)) worst = error;
    }
  }
  return worst;
}

int main() {
  const auto log = [](Vector<float>::type x) { return sslfast::logarithm(x); };
  const auto exp2 = [](Vector<float>::type x) { return sslfast::power_of_two(x); };
  const auto true_log = [](double x) { return std::log(x); };
  const auto true_exp2 = [](double x) { return std::exp2(x); };
  double log_error = largest_error(0.25f, 4.0f, log, true_log);
  for (float from : {std::numeric_limits<float>::min(), 1e-30f, 1e-8f, 1e3f, 1e30f}) {
    log_error = std::fmax(log_error, largest_error(from, from * 1.01f, log, true_log));
  }
  double exp2_error = largest_error(0.125f, 8.0f, exp2, true_exp2);
  exp2_error = std::fmax(exp2_error, largest_error(-0.125f, -8.0f, exp2, true_exp2));
  exp2_error = std::fmax(exp2_error, largest_error(-124.0f, -125.0f, exp2, true_exp2));
  const float infinity = std::numeric_limits<float>::infinity();
  uint32_t payload = 0x7fc00001u;
  float nan;
  std::memcpy(&nan, &payload, 4);
  std::printf("%.3g %.3g\n", log_error, exp2_error);
  std::printf("%d %d %d %d\n", one(log, 1.0f) == 0, one(log, infinity) == infinity, std::isnan(one(log, nan)),
              std::isnan(one(log, -nan)));
  std::printf("%d %d %d %d %d\n", one(exp2, 0.0f) == 1, one(exp2, -infinity) == 0, one(exp2, -125.5f) == 0,
              std::isnan(one(exp2, nan)), one(exp2, 127.0f) == std::ldexp(1.0f, 127));
  return 0;
}
