// What is done with a row: conversion to float32, standardisation, a look for numbers that are not finite, moments.
#pragma once

#include <cstddef>

namespace sslfast::store {

enum class Kind { float32, float16, bfloat16 };

inline std::size_t item_bytes(Kind kind) { return kind == Kind::float32 ? 4 : 2; }

// Exact.
void to_float(Kind kind, const unsigned char* in, float* out, std::size_t count);
// out[i] = (out[i] - mean[i]) / deviation[i], rounded as these two operations in float32 are.
void standardise(float* out, const float* mean, const float* deviation, std::size_t count);
bool all_finite(const float* values, std::size_t count);
// Merges columns [first, last) of `rows` rows of `width` into means and sums of squared distances from them, which hold
// `before` rows (Chan, Golub and LeVeque, 1979).
void add_moments(const float* values, std::size_t rows, std::size_t width, std::size_t first, std::size_t last,
                 double before, double* mean, double* squares);

}  // namespace sslfast::store
