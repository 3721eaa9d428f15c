// Launchers of the capacitance. A replacement: a product with A, its pivot, the update. A solve:
// the product A b, then for each candidate a product with K, a decision, and the product of its
// residual with A; what turns out to be needless returns at once.
#include "window/capacitance/capacitance.cuh"

namespace mfac::cuda {
namespace {

// Up to as many parts of a product are summed by the kernel that reads it, more in a launch of
// their own: one block takes longer for them than a launch does.
constexpr int64_t kMostPartsToRead = 16;

// product <- A x for `count` vectors.  scratch: product_scratch(count)
int symmetric_matvec(const double* lower, const TriangleShape& shape, int64_t count, const Terms& x, int64_t left_out,
                     const Refinement* refinements, double* scratch, Terms& product, void* stream) {
  const int64_t m = shape.m, tiles = shape.tiles();
  product = {nullptr, scratch, tiles};
  const int error = MFAC_LAUNCH(symmetric_matvec_kernel, dim3(unsigned(shape.blocks() * count)), dim3(kTileThreads),
                                stream, lower, m, tiles, count, x, left_out, refinements, scratch);
  if (error != 0 || tiles <= kMostPartsToRead) return error;
  double* sum = scratch + tiles * count * m;
  product = {nullptr, sum, 1};
  return MFAC_LAUNCH(sum_product_kernel, dim3(unsigned(ceil_div(count * m, kWarp))), dim3(kSumWarps * kWarp), stream,
                     scratch, tiles, m, count * m, refinements, sum);
}

// Solves for at most kMostSolvedTogether vectors.
int solve_some(const double* inverse, const double* gram, const TriangleShape& shape, double shift, const double* b,
               int64_t count, double* solutions, double* least_errors, double* scratch, void* stream) {
  constexpr int kMostCandidates = 4;
  const int64_t m = shape.m;
  double *of_inverse = scratch, *of_gram = of_inverse + shape.product_scratch(count);
  double *x = of_gram + shape.product_scratch(count), *residual = x + count * m;
  auto* refinements = reinterpret_cast<Refinement*>(residual + count * m);

  Terms candidate, product;
  int error = symmetric_matvec(inverse, shape, count, {nullptr, b, 1}, -1, nullptr, of_inverse, candidate, stream);
  for (int number = 1; error == 0; ++number) {
    const bool is_first = number == 1;
    error =
        symmetric_matvec(gram, shape, count, candidate, -1, is_first ? nullptr : refinements, of_gram, product, stream);
    if (error != 0) break;
    error = MFAC_LAUNCH(refine_kernel, dim3(unsigned(count)), dim3(kVectorThreads), stream, gram, m, shift, b,
                        candidate, product, is_first, refinements, x, residual, solutions, least_errors);
    if (error != 0 || number == kMostCandidates) break;
    error =
        symmetric_matvec(inverse, shape, count, {nullptr, residual, 1}, -1, refinements, of_inverse, candidate, stream);
    candidate.base = x;
  }
  return error;
}

}  // namespace

int capacitance_replace(double* inverse, double* gram, int64_t m, int64_t row, const double* products, double shift,
                        double* pivot, double* scratch, void* stream) {
  const TriangleShape shape{m};
  double *a = scratch + shape.product_scratch(1), *y = a + m;
  auto* replacement = reinterpret_cast<Replacement*>(y + m);
  Terms product;
  int error = symmetric_matvec(inverse, shape, 1, {nullptr, products, 1}, row, nullptr, scratch, product, stream);
  if (error == 0)
    error = MFAC_LAUNCH(replacement_pivot_kernel, dim3(1), dim3(kVectorThreads), stream, inverse, m, row, products,
                        shift, product, a, y, replacement, pivot);
  if (error == 0)
    error = MFAC_LAUNCH(replace_kernel, dim3(unsigned(shape.blocks())), dim3(kTileThreads), stream, inverse, gram, m,
                        shape.tiles(), row, products, a, y, replacement);
  return error;
}

int capacitance_solve(const double* inverse, const double* gram, int64_t m, double shift, const double* vectors,
                      int64_t k, double* solutions, double* largest_error, double* scratch, void* stream) {
  const TriangleShape shape{m};
  double* least_errors = k == 1 ? largest_error : scratch + shape.solve_scratch(k) - k;
  if (m > 0)
    for (int64_t done = 0; done < k; done += kMostSolvedTogether) {
      const int error =
          solve_some(inverse, gram, shape, shift, vectors + done * m, std::min(k - done, kMostSolvedTogether),
                     solutions + done * m, least_errors + done, scratch, stream);
      if (error != 0) return error;
    }
  if (k == 1 && m > 0) return 0;
  return MFAC_LAUNCH(largest_kernel, dim3(1), dim3(kTileThreads), stream, least_errors, m > 0 ? k : 0, largest_error);
}

}  // namespace mfac::cuda
