// The kept rows and columns of the matrix are gathered into scratch, where they are factored
// (block_fisher/cholesky.inl) and the target solved for.

int64_t restricted_numbers(int64_t kept) {
  const int64_t size = (kept + kTileRows - 1) / kTileRows * kTileRows;
  return size * size + size;
}

void restricted_solve_row(const RestrictedSolve& problem, int64_t row, double* numbers, int64_t* columns) {
  const bool* kept = problem.kept + row * problem.kept_stride;
  const double* target = problem.target + row * problem.target_stride;
  double* result = problem.result + row * problem.n;
  int64_t count = 0;
  for (int64_t j = 0; j < problem.n; ++j) {
    result[j] = 0;
    if (kept[j]) columns[count++] = j;
  }
  const int64_t size = (count + kTileRows - 1) / kTileRows * kTileRows;
  double *a = numbers, *x = numbers + size * size;
  for (int64_t i = 0; i < size; ++i) {
    double* to = a + i * size;
    if (i < count) {
      const double* from = problem.matrix + columns[i] * problem.matrix_stride;
      for (int64_t j = i; j < count; ++j) to[j] = from[columns[j]];
      for (int64_t j = count; j < size; ++j) to[j] = 0;
      x[i] = target[columns[i]];
    } else {  // what is beyond the matrix factors as a unit matrix
      for (int64_t j = i; j < size; ++j) to[j] = j == i;
      x[i] = 0;
    }
    // Tiles on the diagonal are read whole.
    for (int64_t j = i / kTileRows * kTileRows; j < i; ++j) to[j] = 0;
  }
  const bool failed = cholesky_upper(a, size, size) >= 0;
  if (!failed) cholesky_solve(a, size, size, x);
  for (int64_t i = 0; i < count; ++i) result[columns[i]] = failed ? __builtin_nan("") : x[i];
}

constexpr void fill(RestrictedSolveKernels& kernels) { kernels = {restricted_numbers, restricted_solve_row}; }
