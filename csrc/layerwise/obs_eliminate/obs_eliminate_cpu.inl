// One row of weights and its own H⁻¹. What a pivot takes off H⁻¹ is kept back as a vector,
// v = H⁻¹_:p/√(H⁻¹)_pp, until there are kMostPending of them: a column is found in O(n) for each of
// them, and H⁻¹ is read and written once for all, at the speed of products instead of that of
// memory. Weights that are gone leave H⁻¹ at that time, so that it shrinks.
//
// Of H⁻¹ the upper triangle is stored. The first time it is read where all rows share it, and
// written to the row's own.
constexpr int64_t kMostPending = 32;
constexpr double kNever = __builtin_inf();

// Everything about the weights that are left, by their place: in the order of their index, and up
// to whole panels others that are never chosen.
struct LeftWeights {
  int64_t count, padded;
  const double* matrix;  // H⁻¹ before the pending pivots
  int64_t matrix_stride;
  double* own;  // where it is written to
  int64_t stride;
  int64_t pending;
  double *vectors, *packed;                                 // of the pending pivots
  double *w, *diagonal, *barred, *column, *scales, *zeros;  // barred: 0, or infinity
  int64_t *index, *is_gone, *places, *room;                 // room: how many of a group may still go
};

MFAC_INLINE int64_t padded_size(int64_t n) {
  constexpr int64_t kPanel = kPanelWidth<double>;
  return (n + kPanel - 1) / kPanel * kPanel;
}

// Rows an odd number of lines apart: entries one above the other lie in different sets of a cache.
MFAC_INLINE int64_t padded_stride(int64_t n) { return (padded_size(n) + 7) / 8 * 8 | 8; }

int64_t eliminate_numbers(int64_t n) {
  return (padded_size(n) + 2 * kMostPending + 6) * padded_stride(n);  // whole panels are whole tiles
}
int64_t eliminate_integers(int64_t n) { return 4 * padded_size(n); }

MFAC_INLINE LeftWeights all_weights(const Elimination& e, int64_t row, double* numbers, int64_t* integers) {
  const int64_t n = e.n, padded = padded_size(n), stride = padded_stride(n);
  double *const vectors = numbers + padded * stride, *const packed = vectors + kMostPending * stride;
  double* const rest = packed + kMostPending * stride;
  LeftWeights left = {n,
                      padded,
                      e.inverse,
                      e.inverse_stride,
                      numbers,
                      stride,
                      0,
                      vectors,
                      packed,
                      rest,
                      rest + stride,
                      rest + 2 * stride,
                      rest + 3 * stride,
                      rest + 4 * stride,
                      rest + 5 * stride,
                      integers,
                      integers + padded,
                      integers + 2 * padded,
                      integers + 3 * padded};
  for (int64_t j = 0; j < padded; ++j) {
    const bool exists = j < n;
    left.w[j] = exists ? e.weight[row * e.weight_stride + j] : 0.0;
    left.diagonal[j] = exists ? e.inverse[j * e.inverse_stride + j] : 1.0;
    left.barred[j] = exists && !e.dropped[row * e.dropped_stride + j] ? 0.0 : kNever;
    left.scales[j] = exists && e.scales != nullptr ? e.scales[row * e.scales_stride + j] : 1.0;
    left.zeros[j] = exists && e.zeros != nullptr ? e.zeros[row * e.zeros_stride + j] : 0.0;
    left.index[j] = j;
    left.is_gone[j] = 0;
  }
  return left;
}

MFAC_INLINE int64_t place_of(const LeftWeights& left, int64_t index) {
  int64_t low = 0;
  for (int64_t high = left.count; high - low > 1;) {
    const int64_t middle = (low + high) / 2;
    if (left.index[middle] <= index) low = middle;
    else high = middle;
  }
  return low;
}

// A weight of a group is gone, or only found to be: with the last that may go, the others stay.
MFAC_INLINE void close_if_full(const Elimination& e, const LeftWeights& left, int64_t group, int64_t near) {
  if (left.room[group] > 0) return;
  while (near > 0 && left.index[near - 1] / e.group == group) --near;
  for (; near < left.count && left.index[near] / e.group == group; ++near) left.barred[near] = kNever;
}

MFAC_INLINE void open_groups(const Elimination& e, int64_t row, const LeftWeights& left) {
  if (e.keep == 0) return;
  for (int64_t begin = 0, group = 0; begin < e.n; begin += e.group, ++group) {
    const int64_t end = e.n - begin < e.group ? e.n : begin + e.group;
    left.room[group] = end - begin > e.keep ? end - begin - e.keep : 0;
    for (int64_t j = begin; j < end; ++j) left.room[group] -= e.dropped[row * e.dropped_stride + j];
    close_if_full(e, left, group, begin);
  }
}

// H⁻¹ <- H⁻¹ - Σ v vᵀ over the pending pivots, without the weights that are gone. A tile of rows at
// a time, from the diagonal to the right: what is written is never right of or below what has been
// read.
MFAC_INLINE void take_off_pending(LeftWeights& left) {
  constexpr int64_t kPanel = kPanelWidth<double>;
  int64_t count = 0;
  for (int64_t j = 0; j < left.count; ++j)
    if (!left.is_gone[j]) left.places[count++] = j;
  const int64_t *const places = left.places, depth = left.pending, padded = padded_size(count);
  for (int64_t k = 0; k < depth; ++k) {
    const double* v = left.vectors + k * left.stride;
    double* to = left.packed + k * kPanel;
    for (int64_t j = 0; j < padded; j += kPanel, to += kPanel * depth)
      for (int64_t i = 0; i < kPanel; ++i) to[i] = j + i < count ? v[places[j + i]] : 0.0;
  }

  for (int64_t row = 0; row < count; row += kTileRows)
    for (int64_t column = row / kPanel * kPanel; column < count; column += kPanel) {
      f64v sum[kTileRows][kPanelVectors] = {};
      add_products(sum, left.packed + row / kPanel * kPanel * depth + row % kPanel, kPanel,
                   left.packed + column * depth, kPanel, depth);
      const bool is_one_piece = column + kPanel <= count && places[column + kPanel - 1] - places[column] == kPanel - 1;
#pragma GCC unroll 8
      for (int64_t r = 0; r < kTileRows; ++r) {
        const double* from = left.matrix + places[row + r < count ? row + r : count - 1] * left.matrix_stride;
        double *to = left.own + (row + r) * left.stride + column, piece[kPanel];
        if (!is_one_piece)
          for (int64_t j = 0; j < kPanel; ++j) piece[j] = column + j < count ? from[places[column + j]] : 0.0;
        const double* entries = is_one_piece ? from + places[column] : piece;
#pragma GCC unroll 4
        for (int v = 0; v < kPanelVectors; ++v) store(to + v * kLanes, load(entries + v * kLanes) - sum[r][v]);
      }
    }

  double* const of_all[] = {left.w, left.diagonal, left.barred, left.scales, left.zeros};
  for (double* of_weights : of_all)
    for (int64_t j = 0; j < count; ++j) of_weights[j] = of_weights[places[j]];
  for (int64_t j = 0; j < count; ++j) {
    left.index[j] = left.index[places[j]];
    left.is_gone[j] = 0;
  }
  for (int64_t j = count; j < padded; ++j) {
    left.w[j] = left.zeros[j] = 0;
    left.diagonal[j] = left.scales[j] = 1;
    left.barred[j] = kNever;
  }
  left.count = count;
  left.padded = padded;
  left.matrix = left.own;
  left.matrix_stride = left.stride;
  left.pending = 0;
}

// left.column <- H⁻¹_:p, with the pending pivots
MFAC_INLINE void find_column(const LeftWeights& left, int64_t p) {
  double* column = left.column;
  const double* row = left.matrix + p * left.matrix_stride;
  if (left.matrix == left.own)
    for (int64_t j = 0; j < p; ++j) column[j] = left.matrix[j * left.matrix_stride + p];
  for (int64_t j = left.matrix == left.own ? p : 0; j < left.count; ++j) column[j] = row[j];
  for (int64_t j = left.count; j < left.padded; ++j) column[j] = 0;
  double factors[kMostPending];
  for (int64_t k = 0; k < left.pending; ++k) factors[k] = -left.vectors[k * left.stride + p];
  add_rows(factors, left.vectors, left.stride, left.pending, column, left.padded);
}

// The least score and its place, in each lane: of equal ones the first.
struct LeastScores {
  f64v score = f64v{} + kNever, place = f64v{} - 1.0;

  __attribute__((always_inline)) void look_at(f64v scores, f64v places) {
    const auto is_less = scores < score;
    score = is_less ? scores : score;
    place = is_less ? places : place;
  }
  __attribute__((always_inline)) int64_t first() const {
    int64_t best = 0;
    for (int64_t i = 1; i < kLanes; ++i)
      if (score[i] < score[best] || (score[i] == score[best] && place[i] < place[best])) best = i;
    return int64_t(place[best]);
  }
};

// The place of the weight that goes next, -1 if there is none; `takes_off`: after the pivot has been
// taken off the weights by `shift` of its column and off the diagonal, and its vector kept back.
template <bool takes_off, bool quantises>
MFAC_INLINE int64_t next_place(const LeftWeights& left, double levels, double shift, double inverse_root) {
  LeastScores least, outside;
  double* vector = left.vectors + left.pending * left.stride;
  f64v places;
  for (int64_t i = 0; i < kLanes; ++i) places[i] = double(i);
  for (int64_t j = 0; j < left.padded; j += kLanes, places += double(kLanes)) {
    f64v w = load(left.w + j), diagonal = load(left.diagonal + j);
    if (takes_off) {
      const f64v column = load(left.column + j), v = column * inverse_root;
      w -= shift * column;
      diagonal -= v * v;
      store(vector + j, v);
      store(left.w + j, w);
      store(left.diagonal + j, diagonal);
    }
    const f64v barred = load(left.barred + j);
    if constexpr (quantises) {
      const f64v scale = load(left.scales + j), rest = w - quantized(w, scale, load(left.zeros + j), levels);
      const f64v score = rest * rest / diagonal + barred, never = f64v{} + kNever;
      least.look_at(score, places);
      outside.look_at(magnitudes(rest) > scale * kWithinGrid ? score : never, places);
    } else {
      least.look_at(w * w / diagonal + barred, places);
    }
  }
  if constexpr (quantises)
    if (const int64_t place = outside.first(); place >= 0) return place;
  return least.first();
}

template <bool quantises>
void eliminate(const Elimination& e, int64_t row, double* numbers, int64_t* integers) {
  LeftWeights left = all_weights(e, row, numbers, integers);
  open_groups(e, row, left);
  double *result = e.result + row * e.n, *losses = e.losses + row * e.count;
  int64_t* order = e.order + row * e.count;

  // Drives the weight at a place to q; the place of the next.
  const auto drive = [&](int64_t index, double q) __attribute__((always_inline)) {
    if (left.pending == kMostPending) take_off_pending(left);
    const int64_t p = place_of(left, index);
    const double pivot = left.diagonal[p], rest = left.w[p] - q;
    find_column(left, p);
    left.barred[p] = kNever;
    left.is_gone[p] = 1;
    result[index] = q;
    if (e.keep > 0) close_if_full(e, left, index / e.group, p);
    const int64_t next = next_place<true, quantises>(left, e.levels, rest / pivot, 1 / std::sqrt(pivot));
    ++left.pending;
    return next;
  };

  const bool* dropped = e.dropped + row * e.dropped_stride;
  int64_t next = next_place<false, quantises>(left, e.levels, 0, 0), step = 0;
  for (int64_t j = 0; j < e.n; ++j)
    if (dropped[j]) next = drive(j, 0.0);
  for (; step < e.count && next >= 0; ++step) {
    const int64_t index = left.index[next];
    const double w = left.w[next];
    double q = 0;
    if constexpr (quantises) {
      const f64v none = {};
      q = quantized(none + w, none + left.scales[next], none + left.zeros[next], e.levels)[0];
    }
    order[step] = index;
    losses[step] = (w - q) * (w - q) / left.diagonal[next];
    if (e.keep > 0) --left.room[index / e.group];
    next = drive(index, q);
  }
  for (; step < e.count; ++step) {
    order[step] = -1;
    losses[step] = kNever;
  }
  for (int64_t j = 0; j < left.count; ++j)
    if (!left.is_gone[j]) result[left.index[j]] = left.w[j];
}

void eliminate_row(const Elimination& e, int64_t row, double* numbers, int64_t* integers) {
  if (e.scales != nullptr) eliminate<true>(e, row, numbers, integers);
  else eliminate<false>(e, row, numbers, integers);
}

constexpr void fill(ObsEliminateKernels& kernels) { kernels = {eliminate_numbers, eliminate_integers, eliminate_row}; }
