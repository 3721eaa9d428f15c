// Batched small blocks: everything one diagonal block of the Fisher needs, by one thread, in cache.
// A dual block goes by in tiles of columns, each widened into scratch, so that scratch is m·kBlockTileColumns however
// wide the block is. A primal block is no wider than m.

template <typename T>
void block_widen(const Block<T>& block, int64_t begin, int64_t cols) {  // scratch <- columns of G_b, [rows, cols]
  for (int64_t r = 0; r < block.rows; ++r) {
    const T* x = block.window + r * block.stride + begin;
    double* y = block.scratch + r * cols;
    int64_t j = 0;
    for (; j + kLanes <= cols; j += kLanes) store(y + j, load(x + j));
    for (; j < cols; ++j) y[j] = x[j];
  }
}

MFAC_INLINE int64_t block_tile_width(int64_t remaining) {
  return remaining < kBlockTileColumns ? remaining : kBlockTileColumns;
}

// In-place lower Cholesky factor of the lower triangle of `a`; -1, or the failing pivot. Row i is solved
// against the rows above it, whose dot products run over contiguous prefixes.
MFAC_INLINE int64_t cholesky_lower(double* a, int64_t size, int64_t stride) {
  for (int64_t i = 0; i < size; ++i) {
    double* row = a + i * stride;
    for (int64_t j = 0; j < i; ++j) {
      const double* above = a + j * stride;
      row[j] = (row[j] - dot(row, above, j)) / above[j];
    }
    const double pivot = row[i] - dot(row, row, i);
    if (!(pivot > 0)) return i;  // also catches NaN
    row[i] = std::sqrt(pivot);
  }
  return -1;
}

// x <- L⁻ᵀ L⁻¹ x
MFAC_INLINE void cholesky_solve(const double* factor, int64_t size, int64_t stride, double* x) {
  for (int64_t i = 0; i < size; ++i) x[i] = (x[i] - dot(factor + i * stride, x, i)) / factor[i * stride + i];
  for (int64_t i = size - 1; i >= 0; --i) {
    x[i] /= factor[i * stride + i];
    axpy(-x[i], factor + i * stride, x, i);
  }
}

// X <- L⁻¹ X for X of `cols` columns, row-major.
MFAC_INLINE void forward_substitute(const double* factor, int64_t size, int64_t stride, double* x, int64_t cols) {
  for (int64_t i = 0; i < size; ++i) {
    const double* row = factor + i * stride;
    double* xi = x + i * cols;
    int64_t j = 0;
    for (; j + 4 <= i; j += 4) {
      const double c[4] = {-row[j], -row[j + 1], -row[j + 2], -row[j + 3]};
      axpy_rows<4>(c, x + j * cols, cols, xi, cols);
    }
    for (; j < i; ++j) axpy(-row[j], x + j * cols, xi, cols);
    const double inverse_pivot = 1 / row[i];
    for (int64_t k = 0; k < cols; ++k) xi[k] *= inverse_pivot;
  }
}

// -1, or the failing pivot.  scratch: dual [rows, kBlockTileColumns + 1], primal [rows, cols]
template <typename T>
int64_t block_factor(const Block<T>& block) {
  double* factor = block.factor;
  if (block.form == BlockForm::kDual) {  // nλI + G_b G_bᵀ
    double* products = block.scratch + block.rows * kBlockTileColumns;
    for (int64_t i = 0; i < block.rows; ++i) {
      for (int64_t j = 0; j < i; ++j) factor[i * block.factor_stride + j] = 0;
      factor[i * block.factor_stride + i] = block.num_terms * block.damping;
    }
    for (int64_t begin = 0; begin < block.cols; begin += kBlockTileColumns) {
      const int64_t width = block_tile_width(block.cols - begin);
      block_widen(block, begin, width);
      for (int64_t i = 0; i < block.rows; ++i) {
        double* row = factor + i * block.factor_stride;
        window_dot_rows(block.scratch, width, i + 1, width, block.scratch + i * width, products);
        for (int64_t j = 0; j <= i; ++j) row[j] += products[j];
      }
    }
    return cholesky_lower(factor, block.rows, block.factor_stride);
  }
  // λI + G_bᵀ G_b / n, from the transposed block: rows of scratch are the block's columns.
  for (int64_t r = 0; r < block.rows; ++r)
    for (int64_t j = 0; j < block.cols; ++j) block.scratch[j * block.rows + r] = block.window[r * block.stride + j];
  for (int64_t i = 0; i < block.cols; ++i) {
    double* row = factor + i * block.factor_stride;
    window_dot_rows(block.scratch, block.rows, i + 1, block.rows, block.scratch + i * block.rows, row);
    for (int64_t j = 0; j <= i; ++j) row[j] /= block.num_terms;
    row[i] += block.damping;
  }
  return cholesky_lower(factor, block.cols, block.factor_stride);
}

// dual: (v - G_bᵀ C_b⁻¹ G_b v) / λ;  primal: F_b⁻¹ v.  scratch: [rows]
template <typename T>
void block_ihvp(const Block<T>& block, const double* v, double* out) {
  if (block.form == BlockForm::kPrimal) {
    for (int64_t j = 0; j < block.cols; ++j) out[j] = v[j];
    cholesky_solve(block.factor, block.cols, block.factor_stride, out);
    return;
  }
  double* c = block.scratch;
  window_dot_rows(block.window, block.stride, block.rows, block.cols, v, c);
  cholesky_solve(block.factor, block.rows, block.factor_stride, c);
  for (int64_t j = 0; j < block.cols; ++j) out[j] = 0;
  add_rows(c, block.window, block.stride, block.rows, out, block.cols);
  for (int64_t j = 0; j < block.cols; ++j) out[j] = (v[j] - out[j]) / block.damping;
}

// λv + G_bᵀ (G_b v) / n.  scratch: [rows]
template <typename T>
void block_matvec(const Block<T>& block, const double* v, double* out) {
  double* k = block.scratch;
  window_dot_rows(block.window, block.stride, block.rows, block.cols, v, k);
  for (int64_t r = 0; r < block.rows; ++r) k[r] /= block.num_terms;
  for (int64_t j = 0; j < block.cols; ++j) out[j] = block.damping * v[j];
  add_rows(k, block.window, block.stride, block.rows, out, block.cols);
}

// out[j] <- Σ_i x[i, j]²
MFAC_INLINE void squared_column_norms(const double* x, int64_t rows, int64_t cols, double* out) {
  for (int64_t j = 0; j < cols; ++j) out[j] = 0;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) out[j] += x[i * cols + j] * x[i * cols + j];
}

// dual: (1 - ‖U_:j‖²)/λ with U = L⁻¹ G_b; where the subtraction cancels, at least 1/F_jj, which bounds it from below.
// primal: ‖(L⁻¹)_:j‖².  scratch: dual [rows, kBlockTileColumns], primal [cols, cols]
template <typename T>
void block_inverse_diagonal(const Block<T>& block, double* out) {
  constexpr double kCancelled = 1e-6;
  if (block.form == BlockForm::kPrimal) {
    for (int64_t k = 0; k < block.cols * block.cols; ++k) block.scratch[k] = k % (block.cols + 1) == 0;
    forward_substitute(block.factor, block.cols, block.factor_stride, block.scratch, block.cols);
    squared_column_norms(block.scratch, block.cols, block.cols, out);
    return;
  }
  for (int64_t begin = 0; begin < block.cols; begin += kBlockTileColumns) {
    const int64_t width = block_tile_width(block.cols - begin);
    block_widen(block, begin, width);
    forward_substitute(block.factor, block.rows, block.factor_stride, block.scratch, width);
    squared_column_norms(block.scratch, block.rows, width, out + begin);
  }
  for (int64_t j = 0; j < block.cols; ++j) {
    double rest = 1 - out[j];
    if (rest < kCancelled) {
      double sum = 0;
      for (int64_t r = 0; r < block.rows; ++r) {
        const double x = block.window[r * block.stride + j];
        sum += x * x;
      }
      const double least = block.damping / (block.damping + sum / block.num_terms);
      if (rest < least) rest = least;
    }
    out[j] = rest / block.damping;
  }
}
