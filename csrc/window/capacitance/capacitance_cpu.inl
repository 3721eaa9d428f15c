// Symmetric m x m matrices in float64 of which only the lower triangle is read and written: half
// the traffic of the full square, which at m = 1024 is what bounds these kernels. Pointers are
// restrict: otherwise compilers take one of two ways, rounded differently, by how near to each
// other the vectors happen to lie.

// y += the products that rows [begin, end) hold: A[i, :i+1]·x for y[i], and x[i]·A[i, :i] for
// y[:i].
void symmetric_matvec_rows(const double* __restrict lower, int64_t size, int64_t begin, int64_t end,
                           const double* __restrict x, double* __restrict y) {
  for (int64_t i = begin; i < end; ++i) {
    const double* __restrict row = lower + i * size;
    const double xi = x[i];
    f64v s0 = {}, s1 = {};
    int64_t j = 0;
    for (; j + 2 * kLanes <= i; j += 2 * kLanes) {
      const f64v a0 = load(row + j), a1 = load(row + j + kLanes);
      s0 += a0 * load(x + j);
      s1 += a1 * load(x + j + kLanes);
      store(y + j, load(y + j) + xi * a0);
      store(y + j + kLanes, load(y + j + kLanes) + xi * a1);
    }
    double sum = lane_sum(s0 + s1);
    for (; j < i; ++j) {
      sum += row[j] * x[j];
      y[j] += xi * row[j];
    }
    y[i] += sum + row[i] * xi;
  }
}

// A[i, :i+1] += alpha·a[i]·a[:i+1] + beta·b[i]·b[:i+1] for i in [begin, end).
void symmetric_rank2_rows(double* __restrict lower, int64_t size, int64_t begin, int64_t end, double alpha,
                          const double* __restrict a, double beta, const double* __restrict b) {
  for (int64_t i = begin; i < end; ++i) {
    double* __restrict row = lower + i * size;
    const double p = alpha * a[i], q = beta * b[i];
    int64_t j = 0;
    for (; j + kLanes <= i + 1; j += kLanes) store(row + j, load(row + j) + p * load(a + j) + q * load(b + j));
    for (; j <= i; ++j) row[j] += p * a[j] + q * b[j];
  }
}

constexpr void fill(CapacitanceKernels& kernels) { kernels = {symmetric_matvec_rows, symmetric_rank2_rows}; }
