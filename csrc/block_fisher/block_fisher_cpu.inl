// Batched small blocks: everything one diagonal block of the Fisher needs, by one thread, in cache.
// The block's columns of the window are widened once into scratch, [rows, cols] float64, or
// [cols, rows] for a primal block, so that every inner loop runs over contiguous doubles.

template <typename T>
void block_widen(const Block<T>& block) {  // scratch <- G_b, [rows, cols]
  for (int64_t r = 0; r < block.rows; ++r) {
    const T* x = block.window + r * block.stride;
    double* y = block.scratch + r * block.cols;
    int64_t j = 0;
    for (; j + kLanes <= block.cols; j += kLanes) store(y + j, load(x + j));
    for (; j < block.cols; ++j) y[j] = x[j];
  }
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
      axpy4(c, x + j * cols, cols, xi, cols);
    }
    for (; j < i; ++j) axpy(-row[j], x + j * cols, xi, cols);
    const double inverse_pivot = 1 / row[i];
    for (int64_t k = 0; k < cols; ++k) xi[k] *= inverse_pivot;
  }
}

template <typename T>
int64_t block_factor(const Block<T>& block) {
  double* factor = block.factor;
  if (block.form == BlockForm::kDual) {  // nλI + G_b G_bᵀ
    block_widen(block);
    for (int64_t i = 0; i < block.rows; ++i) {
      double* row = factor + i * block.factor_stride;
      window_dot_rows(block.scratch, block.cols, i + 1, block.cols, block.scratch + i * block.cols, row);
      row[i] += block.num_terms * block.damping;
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

// dual: (1 - ‖U_:j‖²)/λ with U = L⁻¹ G_b;  primal: ‖(L⁻¹)_:j‖².  scratch: [rows, cols] or [cols, cols]
template <typename T>
void block_inverse_diagonal(const Block<T>& block, double* out) {
  const bool dual = block.form == BlockForm::kDual;
  const int64_t size = dual ? block.rows : block.cols;
  if (dual) {
    block_widen(block);
  } else {
    for (int64_t k = 0; k < size * size; ++k) block.scratch[k] = k % (size + 1) == 0;
  }
  forward_substitute(block.factor, size, block.factor_stride, block.scratch, block.cols);
  for (int64_t j = 0; j < block.cols; ++j) out[j] = 0;
  for (int64_t i = 0; i < size; ++i)
    for (int64_t j = 0; j < block.cols; ++j) {
      const double u = block.scratch[i * block.cols + j];
      out[j] += u * u;
    }
  if (dual)
    for (int64_t j = 0; j < block.cols; ++j) out[j] = (1 - out[j]) / block.damping;
}
