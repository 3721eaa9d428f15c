// Upper Cholesky factors in float64, A = RᵀR, a tile of rows at a time: rows of R are contiguous,
// so that updates and solves run over vectors of columns and every flop but the tiles on the
// diagonal is a register tile's.

// Factors the rows x rows tile on the diagonal, upper triangle; -1, or the failing pivot.
MFAC_INLINE int64_t cholesky_tile(double* a, int64_t stride, double* inverse_pivots) {
  for (int64_t i = 0; i < kTileRows; ++i) {
    double* row = a + i * stride;
    const double pivot = row[i];
    if (!(pivot > 0)) return i;  // also catches NaN
    row[i] = std::sqrt(pivot);
    inverse_pivots[i] = 1 / row[i];
    for (int64_t j = i + 1; j < kTileRows; ++j) row[j] *= inverse_pivots[i];
    for (int64_t k = i + 1; k < kTileRows; ++k)
      for (int64_t j = k; j < kTileRows; ++j) a[k * stride + j] -= row[k] * row[j];
  }
  return -1;
}

// Columns [column, column + vectors·kLanes) of the tile of rows that begins at `row`: what the rows
// above contribute is taken off and, where the tile's own factor is given, the result solved
// against it.
template <int vectors>
MFAC_INLINE void cholesky_columns(double* a, int64_t stride, int64_t row, int64_t column,
                                  const double* inverse_pivots) {
  f64v sum[kTileRows][vectors] = {};
  add_products(sum, a + row, stride, a + column, stride, row);
  double* to = a + row * stride + column;
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[r][v] = load(to + r * stride + v * kLanes) - sum[r][v];
  }
  if (inverse_pivots != nullptr) solve_tile<kTileRows, vectors>(sum, a + row * stride + row, stride, inverse_pivots);
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) store(to + r * stride + v * kLanes, sum[r][v]);
  }
}

// In place: the upper triangle of `a` becomes R. size is a multiple of kTileRows and of kLanes. -1,
// or the failing pivot.
MFAC_INLINE int64_t cholesky_upper(double* a, int64_t size, int64_t stride) {
  double inverse_pivots[kTileRows];
  for (int64_t row = 0; row < size; row += kTileRows) {
    for (int64_t column = row; column < row + kTileRows; column += kLanes)
      cholesky_columns<1>(a, stride, row, column, nullptr);
    const int64_t failed = cholesky_tile(a + row * stride + row, stride, inverse_pivots);
    if (failed >= 0) return row + failed;
    int64_t column = row + kTileRows;
    for (; column + kPanelVectors * kLanes <= size; column += kPanelVectors * kLanes)
      cholesky_columns<kPanelVectors>(a, stride, row, column, inverse_pivots);
    for (; column < size; column += kLanes) cholesky_columns<1>(a, stride, row, column, inverse_pivots);
  }
  return -1;
}

// x <- R⁻¹ R⁻ᵀ x
MFAC_INLINE void cholesky_solve(const double* upper, int64_t size, int64_t stride, double* x) {
  for (int64_t i = 0; i < size; ++i) {
    x[i] /= upper[i * stride + i];
    axpy(-x[i], upper + i * stride + i + 1, x + i + 1, size - i - 1);
  }
  for (int64_t i = size - 1; i >= 0; --i)
    x[i] = (x[i] - dot(upper + i * stride + i + 1, x + i + 1, size - i - 1)) / upper[i * stride + i];
}
