// Launchers of the CUDA twins of capacitance_replace_ and capacitance_solve: pointers to device
// memory, a stream, the launch's error. Nothing is decided on the host: what depends on values is a
// few numbers in scratch memory.
#pragma once

#include <algorithm>

#include "common/formats.h"

namespace mfac::cuda {

constexpr int64_t kTriangleTile = 64;        // rows and columns of a triangle that a block takes
constexpr int64_t kMostSolvedTogether = 16;  // vectors, which bounds the scratch memory of a solve

// What the kernels of a replacement tell each other.
struct Replacement {
  double alpha, clamped_pivot;  // α is A_jj as it was
};

// Where the refinement of one solution stands.
struct Refinement {
  double done, least_error, matrix_norm, vector_norm;
};

// How a triangle of m rows is cut up: by m alone, so that sums come out the same on every GPU.
struct TriangleShape {
  int64_t m;
  int64_t tiles() const { return (m + kTriangleTile - 1) / kTriangleTile; }  // along a side
  // Rows of tiles are folded, the longest onto the shortest, to a rectangle of blocks; of an odd
  // number the middle one stays alone.
  int64_t blocks() const { return (tiles() + 1) / 2 * (tiles() + 1); }
  // Of `count` products with the matrix, in float64: the parts from every tile, and their sums.
  int64_t product_scratch(int64_t count) const { return (tiles() + 1) * count * m; }
  int64_t replace_scratch() const { return product_scratch(1) + 2 * m + 2; }
  int64_t solve_scratch(int64_t k) const {
    const int64_t count = std::min(k, kMostSolvedTogether);
    return 2 * product_scratch(count) + 2 * count * m + 4 * count + k;
  }
};

// inverse, gram [m, m], pivot [1].  scratch: replace_scratch() float64
int capacitance_replace(double* inverse, double* gram, int64_t m, int64_t row, const double* products, double shift,
                        double* pivot, double* scratch, void* stream);

// solutions [k, m] <- the refined products of the inverse with vectors [k, m], largest_error [1].
// scratch: solve_scratch(k) float64
int capacitance_solve(const double* inverse, const double* gram, int64_t m, double shift, const double* vectors,
                      int64_t k, double* solutions, double* largest_error, double* scratch, void* stream);

}  // namespace mfac::cuda
