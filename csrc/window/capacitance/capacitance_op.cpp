// The m x m side of a sliding window: A = C⁻¹ with C = shift·I + K, shift = nλ, in O(m²) a replaced
// row (docs/derivation.md, "Replacing a row"). Both matrices are float64 and hold their lower
// triangle.
//
// capacitance_replace_ is one pass that reads A (the product A b) and one that rewrites it: the
// removal and the insertion are a single rank-two update,
//   A' = A - a aᵀ/α + y yᵀ/s   with  α = A_jj, a = A_:j, y = A b - a (aᵀb)/α, s = c - bᵀy,
// where b is the new column of K with b_j = 0 and c = K_jj + shift; then row and column j are -y/s
// and 1/s.
//
// capacitance_solve takes a product with A and refines it with K, two more products for each step.
#include <cmath>
#include <tuple>

#include "common/adapter.h"
#include "window/capacitance/capacitance_checks.h"

namespace mfac {
namespace {

// Splits the rows of a triangle into parts of equal area. The number of parts depends on m alone,
// so that the sum of their results does not depend on the number of threads.
std::vector<int64_t> triangle_parts(int64_t m) {
  constexpr int64_t kEntriesPerPart = 65536, kMostParts = 8;
  const int64_t parts = std::clamp<int64_t>(m * m / 2 / kEntriesPerPart, 1, kMostParts);
  std::vector<int64_t> bounds(parts + 1, m);
  bounds[0] = 0;
  for (int64_t row = 0, part = 1; row < m && part < parts; ++row)
    if (row * row * parts >= part * m * m) bounds[part++] = row;
  return bounds;
}

void symmetric_matvec(const double* lower, int64_t m, const double* x, double* y) {
  const std::vector<int64_t> bounds = triangle_parts(m);
  const int64_t parts = bounds.size() - 1;
  std::vector<double> partial(parts * m, 0.0);
  parallel_tasks(parts, m * m / 2 / parts, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      kernels<CapacitanceKernels>().symmetric_matvec(lower, m, bounds[p], bounds[p + 1], x, partial.data() + p * m);
  });
  for (int64_t i = 0; i < m; ++i) {
    double sum = 0;
    for (int64_t p = 0; p < parts; ++p) sum += partial[p * m + i];
    y[i] = sum;
  }
}

void symmetric_rank2(double* lower, int64_t m, double alpha, const double* a, double beta, const double* b) {
  const std::vector<int64_t> bounds = triangle_parts(m);
  const int64_t parts = bounds.size() - 1;
  parallel_tasks(parts, m * m / 2 / parts, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      kernels<CapacitanceKernels>().symmetric_rank2(lower, m, bounds[p], bounds[p + 1], alpha, a, beta, b);
  });
}

double& entry(double* lower, int64_t m, int64_t i, int64_t j) { return lower[std::max(i, j) * m + std::min(i, j)]; }

double replace(double* inverse, double* gram, int64_t m, int64_t row, const double* products, double shift) {
  std::vector<double> a(m), b(products, products + m), y(m);
  for (int64_t i = 0; i < m; ++i) {
    a[i] = entry(inverse, m, i, row);
    entry(gram, m, i, row) = products[i];
  }
  const double alpha = a[row], corner = products[row] + shift;
  b[row] = 0;

  symmetric_matvec(inverse, m, b.data(), y.data());
  double ab = 0;
  for (int64_t i = 0; i < m; ++i) ab += a[i] * b[i];
  double by = 0;
  for (int64_t i = 0; i < m; ++i) {
    y[i] -= a[i] * (ab / alpha);
    by += b[i] * y[i];
  }
  y[row] = 0;
  const double pivot = corner - by, clamped = std::max(pivot, shift);

  symmetric_rank2(inverse, m, -1 / alpha, a.data(), 1 / clamped, y.data());
  for (int64_t i = 0; i < m; ++i) entry(inverse, m, i, row) = -y[i] / clamped;
  inverse[row * m + row] = 1 / clamped;
  return pivot;
}

double norm(const double* x, int64_t n) {
  double squares = 0;
  for (int64_t i = 0; i < n; ++i) squares += x[i] * x[i];
  return std::sqrt(squares);
}

// best <- A b, refined with C until its backward error ‖b - C x‖/(‖C‖‖x‖ + ‖b‖) stops falling;
// returns that error.
double solve(const double* inverse, const double* gram, int64_t m, double shift, const double* b, double* best) {
  constexpr int kMostCandidates = 4;
  constexpr double kEpsilon = 0x1p-52;
  double trace = 0;
  for (int64_t i = 0; i < m; ++i) trace += gram[i * m + i];
  std::vector<double> x(m), residual(m), product(m);
  symmetric_matvec(inverse, m, b, x.data());
  std::fill(best, best + m, 0.0);
  double least = 1;
  for (int candidate = 1;; ++candidate) {
    symmetric_matvec(gram, m, x.data(), product.data());
    for (int64_t i = 0; i < m; ++i) residual[i] = b[i] - shift * x[i] - product[i];
    const double scale = (shift + trace) * norm(x.data(), m) + norm(b, m);  // shift + tr K >= ‖C‖
    const double error = scale == 0 ? 0 : norm(residual.data(), m) / scale;
    if (!(error < least)) break;
    std::copy(x.begin(), x.end(), best);
    least = error;
    if (error <= kEpsilon || candidate == kMostCandidates) break;
    symmetric_matvec(inverse, m, residual.data(), product.data());
    for (int64_t i = 0; i < m; ++i) x[i] += product[i];
  }
  return least;
}

std::tuple<Tensor, Tensor> capacitance_solve_cpu(const Tensor& inverse, const Tensor& gram, const Tensor& vectors,
                                                 double shift) {
  const int64_t m = check_capacitance_solve(inverse, gram, vectors);
  Tensor solutions = empty_f64(vectors, {vectors.size(0), m}), largest_error = empty_f64(vectors, {1});
  double& largest = *largest_error.mutable_data_ptr<double>() = 0;
  for (int64_t i = 0; i < vectors.size(0); ++i) {
    const double error = solve(elements<double>(inverse), elements<double>(gram), m, shift,
                               elements<double>(vectors) + i * m, solutions.mutable_data_ptr<double>() + i * m);
    largest = std::max(largest, error);
  }
  return {solutions, largest_error};
}

Tensor capacitance_replace_cpu(Tensor inverse, Tensor gram, int64_t row, const Tensor& products, double shift) {
  const int64_t m = check_capacitance_replace(inverse, gram, row, products);
  Tensor pivot = empty_f64(products, {1});
  *pivot.mutable_data_ptr<double>() = replace(inverse.mutable_data_ptr<double>(), gram.mutable_data_ptr<double>(), m,
                                              row, products.const_data_ptr<double>(), shift);
  return pivot;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mfac, CPU, m) {
  m.impl("capacitance_solve", TORCH_BOX(&capacitance_solve_cpu));
  m.impl("capacitance_replace_", TORCH_BOX(&capacitance_replace_cpu));
}

}  // namespace mfac
