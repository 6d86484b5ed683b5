// The Python module raypq.kernels._native; it releases the GIL while it works. raypq.kernels.native
// validates shapes and values; checked here is only what would read or write out of bounds.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <stdexcept>

#include "codebook.hpp"
#include "forest.hpp"
#include "join.hpp"
#include "leaves.hpp"
#include "neighbors.hpp"
#include "scan.hpp"

namespace nb = nanobind;
using namespace raypq;

namespace {

template <class T, size_t kDims>
using In = nb::ndarray<const T, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;
template <class T, size_t kDims>
using Out = nb::ndarray<T, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

// Rows and slots are 32-bit numbers, and sums of M table entries are 32-bit.
constexpr size_t kMostRows = size_t(1) << 32, kMostClasses = size_t(1) << 31;
constexpr size_t kMostParts = size_t(1) << 20;
// More threads than any machine has; bounds the number of per-thread buffers.
constexpr size_t kMostThreads = 4096;

template <class Codebooks>  // [M, K, d], to read or to write
Shape shape_of(const Codebooks& C) {
  const Shape shape{C.shape(0), C.shape(1), C.shape(2)};
  require(shape.M && shape.K && shape.d, "C must be [M, K, d], none of them 0");
  require(shape.M <= kMostParts && shape.K <= 256, "C must be [M, K, d], K at most 256");
  return shape;
}

size_t clamp_threads(size_t threads) { return std::clamp<size_t>(threads, 1, kMostThreads); }

void check_codes(const In<uint8_t, 2>& B, const Shape& shape) {
  require(B.shape(1) == shape.M, "B must be [N, M]");
  if (shape.K >= 256) return;
  uint8_t most = 0;
  for (size_t i = 0; i < B.shape(0) * B.shape(1); ++i) most = std::max(most, B.data()[i]);
  require(!B.shape(0) || most < shape.K, "B holds a code that is not below K");
}

Metric metric_of(const std::string& name) {
  return name == "l2" ? Metric::kL2 : name == "cosine" ? Metric::kCosine : Metric::kDot;
}

// The tables, and the arrays that they point to.
struct Tables {
  In<float, 3> C;
  In<float, 2> W;
  In<double, 1> bias;
  In<double, 2> norms;
  std::unique_ptr<ScanTables> scan;
};

void build_tables(Tables* self, In<float, 3> C, In<float, 2> W, In<double, 1> bias,
                 In<double, 2> norms, const std::string& metric, bool across_rows,
                 const std::string& isa, size_t threads) {
  const Shape shape = shape_of(C);
  require(W.shape(1) == shape.D() && bias.shape(0) == W.shape(0), "W must be [T, D], bias [T]");
  require(W.shape(0) < kMostClasses, "T is too large");
  require(norms.shape(0) == shape.M && norms.shape(1) == shape.K, "norms must be [M, K]");
  const Source source{shape,    W.shape(0),  metric_of(metric), C.data(),
                      W.data(), bias.data(), norms.data()};
  new (self) Tables{C, W, bias, norms, nullptr};
  nb::gil_scoped_release release;
  self->scan =
      std::make_unique<ScanTables>(source, across_rows, choose_isa(isa), clamp_threads(threads));
}

void scan(const Tables& tables, In<uint8_t, 2> B, size_t threads, Out<float, 2> scores,
          Out<int64_t, 2> index) {
  const ScanTables& t = *tables.scan;
  const size_t N = B.shape(0), k = scores.shape(1);
  check_codes(B, t.source.shape);
  require(scores.shape(0) == index.shape(0) && k == index.shape(1), "outputs must be alike");
  require(scores.shape(0) == (t.across_rows ? t.source.T : N), "outputs must fit the input");
  require(k <= (t.across_rows ? N : t.source.T) && N < kMostRows, "k or N is too large");
  nb::gil_scoped_release release;
  (t.across_rows ? topk_per_query : topk_per_code)(t, B.data(), N, k, clamp_threads(threads),
                                                   scores.data(), index.data());
}

void score_all(const Tables& tables, In<uint8_t, 2> B, size_t threads, Out<float, 2> scores) {
  const ScanTables& t = *tables.scan;
  check_codes(B, t.source.shape);
  require(t.across_rows, "tables must be made across rows");
  require(B.shape(0) < kMostRows, "N is too large");
  require(scores.shape(0) == t.source.T && scores.shape(1) == B.shape(0), "scores must be [T, N]");
  nb::gil_scoped_release release;
  all_scores(t, B.data(), B.shape(0), clamp_threads(threads), scores.data());
}

// Three columns: queries, rows, scores.
nb::tuple find_matches(const Tables& tables, In<uint8_t, 2> B, float threshold, bool upper_triangle,
                       size_t threads) {
  const ScanTables& t = *tables.scan;
  check_codes(B, t.source.shape);
  require(t.across_rows, "tables must be made across rows");
  require(B.shape(0) < kMostRows, "N is too large");
  struct Columns {
    std::vector<int64_t> query, row;
    std::vector<float> score;
  };
  auto columns = std::make_unique<Columns>();
  {
    nb::gil_scoped_release release;
    for (auto& tile : range_search(t, B.data(), B.shape(0), threshold, upper_triangle,
                                   clamp_threads(threads))) {
      for (const Match& match : tile) {
        columns->query.push_back(match.query);
        columns->row.push_back(match.row);
        columns->score.push_back(match.score);
      }
      std::vector<Match>().swap(tile);  // frees it
    }
  }
  Columns* owned = columns.release();
  nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<Columns*>(p); });
  const size_t n = owned->score.size();
  using Integers = nb::ndarray<nb::numpy, int64_t, nb::ndim<1>>;
  using Floats = nb::ndarray<nb::numpy, float, nb::ndim<1>>;
  return nb::make_tuple(Integers(owned->query.data(), {n}, owner),
                        Integers(owned->row.data(), {n}, owner),
                        Floats(owned->score.data(), {n}, owner));
}

void encode_rows(In<float, 2> U, In<float, 3> C, In<double, 2> norms, const std::string& isa,
            size_t threads, Out<uint8_t, 2> B) {
  const Shape shape = shape_of(C);
  require(U.shape(1) == shape.D(), "U must be [N, D]");
  require(norms.shape(0) == shape.M && norms.shape(1) == shape.K, "norms must be [M, K]");
  require(B.shape(0) == U.shape(0) && B.shape(1) == shape.M, "B must be [N, M]");
  nb::gil_scoped_release release;
  encode(choose_isa(isa), shape, C.data(), norms.data(), U.data(), U.shape(0),
         clamp_threads(threads), B.data());
}

bool widen_values(In<uint16_t, 1> half, const std::string& isa, Out<float, 1> out) {
  require(out.shape(0) == half.shape(0), "out must be as long as half");
  nb::gil_scoped_release release;
  return choose_isa(isa).widen(half.data(), half.shape(0), out.data());
}

void add_codeword_sums(In<float, 2> U, In<uint8_t, 2> B, In<float, 3> C, size_t threads,
                       Out<double, 2> count, Out<double, 3> total, Out<double, 2> error) {
  const Shape shape = shape_of(C);
  check_codes(B, shape);
  require(U.shape(0) == B.shape(0) && U.shape(1) == shape.D(), "U must be [N, D]");
  require(count.size() == shape.M * shape.K && error.size() == count.size() &&
              total.size() == C.size(),
          "outputs must fit C");
  nb::gil_scoped_release release;
  codeword_sums(shape, C.data(), U.data(), B.data(), U.shape(0), clamp_threads(threads),
                {count.data(), total.data(), error.data()});
}

void add_rows_of_groups(In<double, 2> X, In<int64_t, 1> group, size_t threads,
                        Out<double, 2> total) {
  const size_t n = X.shape(0), D = X.shape(1);
  require(group.shape(0) == n && total.shape(1) == D, "X must be [n, D], group [n], total [k, D]");
  for (size_t i = 0; i < n; ++i)
    require(group.data()[i] >= 0 && size_t(group.data()[i]) < total.shape(0),
            "a group is not below k");
  nb::gil_scoped_release release;
  add_rows(X.data(), group.data(), n, D, clamp_threads(threads), total.data());
}

void seed_codebooks(In<float, 2> U, In<int64_t, 1> first, In<double, 2> draws, size_t threads,
          Out<float, 3> C) {
  const Shape shape = shape_of(C);
  const size_t n = U.shape(0);
  require(n && U.shape(1) == shape.D(), "U must be [n, D] with rows, C [M, K, d]");
  require(first.shape(0) == shape.M && draws.shape(0) == shape.M && draws.shape(1) + 1 == shape.K,
          "first must be [M], draws [M, K - 1]");
  for (size_t m = 0; m < shape.M; ++m)
    require(first.data()[m] >= 0 && size_t(first.data()[m]) < n, "first must be rows of U");
  nb::gil_scoped_release release;
  kmeans_pp_init(shape, U.data(), n, first.data(), draws.data(), clamp_threads(threads), C.data());
}

JoinPlan join_plan(In<float, 3> T, In<int64_t, 1> first, In<float, 1> group_limit, float limit,
                   size_t group) {
  const size_t M = T.shape(0), K = T.shape(1), groups = group_limit.shape(0);
  require(M && K && K <= 256 && T.shape(2) == K && M <= kMostParts, "T must be [M, K, K], K <= 256");
  require(first.shape(0) == groups + 1 && group < groups, "first must be [groups + 1]");
  JoinPlan plan{M, K, {}, {}, {}, limit, group};
  for (size_t g = 0; g <= groups; ++g) {
    const int64_t at = first.data()[g];
    require(g ? at > first.data()[g - 1] : at == 0, "first must ascend from 0");
    plan.first.push_back(size_t(at));
  }
  require(plan.first.back() == M, "first must end with M");
  plan.T.assign(T.data(), T.data() + M * K * K);
  plan.group_limit.assign(group_limit.data(), group_limit.data() + groups);
  return plan;
}

JoinSides join_sides(const JoinPlan& plan, In<uint8_t, 2> A, nb::object other, bool once) {
  const Shape shape{plan.M, plan.K, 1};
  check_codes(A, shape);
  require(A.shape(0) < kMostRows, "N is too large");
  JoinSides sides{A.data(), A.shape(0), nullptr, 0, once};
  if (!other.is_none()) {
    const auto B = nb::cast<In<uint8_t, 2>>(other);
    check_codes(B, shape);
    require(B.shape(0) < kMostRows, "N is too large");
    sides.B = B.data();
    sides.m = B.shape(0);
  }
  return sides;
}

// The number of pairs, those of prefixes and of codes that were compared, and whether it is all.
nb::tuple count_join(In<uint8_t, 2> A, nb::object other, In<float, 3> T, In<int64_t, 1> first,
                     In<float, 1> group_limit, float limit, size_t group, bool once,
                     uint64_t most_steps, size_t threads) {
  const JoinPlan plan = join_plan(T, first, group_limit, limit, group);
  const JoinSides sides = join_sides(plan, A, other, once);
  JoinWork work;
  {
    nb::gil_scoped_release release;
    work = count_pairs(plan, sides, most_steps, clamp_threads(threads));
  }
  return nb::make_tuple(work.total, work.visited, work.checked, work.complete);
}

void start_pairs(PairStream* self, In<uint8_t, 2> A, nb::object other, In<float, 3> T,
                 In<int64_t, 1> first, In<float, 1> group_limit, float limit, size_t group,
                 bool once, size_t threads) {
  JoinPlan plan = join_plan(T, first, group_limit, limit, group);
  const JoinSides sides = join_sides(plan, A, other, once);
  nb::gil_scoped_release release;
  new (self) PairStream(std::move(plan), sides, clamp_threads(threads));
}

// Pairs of rows [p, 2]; none at the end.
nb::object next_pairs(PairStream& stream) {
  auto pairs = std::make_unique<std::vector<RowPair>>();
  {
    nb::gil_scoped_release release;
    *pairs = stream.next();
  }
  auto* owned = pairs.release();
  nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<RowPair>*>(p); });
  using Rows = nb::ndarray<nb::numpy, uint32_t, nb::ndim<2>>;
  static_assert(sizeof(RowPair) == 2 * sizeof(uint32_t));
  return nb::cast(Rows(reinterpret_cast<uint32_t*>(owned->data()), {owned->size(), 2}, owner));
}

// A vector as an array that owns it.
nb::object owned_array(std::vector<uint32_t> values) {
  auto* owned = new std::vector<uint32_t>(std::move(values));
  nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<uint32_t>*>(p); });
  using Numbers = nb::ndarray<nb::numpy, uint32_t, nb::ndim<1>>;
  return nb::cast(Numbers(owned->data(), {owned->size()}, owner));
}

const Edge* checked_edges(const In<uint32_t, 2>& edges, size_t n) {
  require(edges.shape(1) == 2 && edges.shape(0) < kMostRows, "edges must be [e, 2]");
  require(n < kMostRows, "too many nodes");
  const uint32_t* nodes = edges.data();
  for (size_t i = 0; i < 2 * edges.shape(0); ++i) require(nodes[i] < n, "a node is not below n");
  static_assert(sizeof(Edge) == 2 * sizeof(uint32_t));
  return reinterpret_cast<const Edge*>(nodes);
}

// Numbers of the edges of the minimum spanning forest.
nb::object forest_of(size_t n, In<uint32_t, 2> edges, In<float, 1> weight) {
  const Edge* pairs = checked_edges(edges, n);
  require(weight.shape(0) == edges.shape(0), "a weight for each edge");
  std::vector<uint32_t> kept;
  {
    nb::gil_scoped_release release;
    kept = spanning_forest(n, pairs, weight.data(), edges.shape(0));
  }
  return owned_array(std::move(kept));
}

// The number of the edge that reaches each node; that of edges, where none does.
nb::object reach(size_t n, In<uint32_t, 2> edges, In<uint32_t, 1> roots) {
  const Edge* pairs = checked_edges(edges, n);
  for (size_t i = 0; i < roots.shape(0); ++i) require(roots.data()[i] < n, "a root is not below n");
  std::vector<uint32_t> found;
  {
    nb::gil_scoped_release release;
    found = edges_from(n, pairs, edges.shape(0), roots.data(), roots.shape(0));
  }
  return owned_array(std::move(found));
}

// The number of distinct codes is at most kMostRows, as that of rows.
void build_neighbors(NeighborIndex* self, In<uint8_t, 2> B, In<float, 3> C, In<double, 2> norms,
                     In<float, 3> T, const std::string& isa, size_t threads) {
  const Shape shape = shape_of(C);
  check_codes(B, shape);
  require(B.shape(0) && B.shape(0) < kMostRows / 2, "N is 0 or too large");
  require(norms.shape(0) == shape.M && norms.shape(1) == shape.K, "norms must be [M, K]");
  require(T.shape(0) == shape.M && T.shape(1) == shape.K && T.shape(2) == shape.K,
          "T must be [M, K, K]");
  nb::gil_scoped_release release;
  new (self) NeighborIndex({shape, C.data(), norms.data(), T.data()}, B.data(), B.shape(0),
                           choose_isa(isa), clamp_threads(threads));
}

// What was done: bounds, comparisons and distances.
nb::tuple work_of(const NeighborWork& work) {
  return nb::make_tuple(work.bounds, work.compared, work.scored);
}

nb::tuple search_all_neighbors(NeighborIndex& index, size_t k, size_t threads) {
  require(k && k <= index.distinct.number.size(), "k must be from 1 to N");
  NeighborWork work;
  {
    nb::gil_scoped_release release;
    work = index.search_all(k, clamp_threads(threads));
  }
  return work_of(work);
}

nb::tuple find_neighbors(const NeighborIndex& index, In<uint32_t, 1> rows, size_t threads,
                         Out<float, 2> scores, Out<int64_t, 2> found) {
  const size_t n = rows.shape(0), k = scores.shape(1), N = index.distinct.number.size();
  require(scores.shape(0) == n && found.shape(0) == n && found.shape(1) == k,
          "outputs must be [n, k]");
  require(k && k <= N, "k must be from 1 to N");
  for (size_t i = 0; i < n; ++i) require(rows.data()[i] < N, "rows must be below N");
  NeighborWork work;
  {
    nb::gil_scoped_release release;
    work = index.find(rows.data(), n, k, clamp_threads(threads), scores.data(), found.data());
  }
  return work_of(work);
}

void check_leaf_rows(const In<uint8_t, 2>& B, const In<double, 1>& squared,
                     const In<float, 1>& floor, const Shape& shape) {
  check_codes(B, shape);
  require(B.shape(0) < kMostRows, "N is too large");
  require(squared.shape(0) == B.shape(0) && floor.shape(0) == B.shape(0),
          "squared and floor must be [n]");
}

Source leaf_source(const In<float, 3>& C, const In<float, 2>& W, const In<double, 1>& bias,
                   const In<double, 2>& norms, const std::string& metric) {
  const Shape shape = shape_of(C);
  require(W.shape(1) == shape.D() && bias.shape(0) == W.shape(0), "W must be [T, D], bias [T]");
  require(W.shape(0) < kMostClasses, "T is too large");
  require(norms.shape(0) == shape.M && norms.shape(1) == shape.K, "norms must be [M, K]");
  return {shape, W.shape(0), metric_of(metric), C.data(), W.data(), bias.data(), norms.data()};
}

// Begin of each leaf's rows [L + 1], and the rows.
nb::tuple pairs_of_leaves(In<float, 3> C, In<float, 2> centre, In<double, 1> bias,
                          In<double, 1> radius, In<double, 2> norms, const std::string& metric,
                          In<uint8_t, 2> B, In<double, 1> squared, In<float, 1> floor,
                          double weight, double largest_bias, const std::string& isa,
                          size_t threads) {
  Source source = leaf_source(C, centre, bias, norms, metric);
  require(radius.shape(0) == source.T, "radius must be [L]");
  source.radius = radius.data();
  check_leaf_rows(B, squared, floor, source.shape);
  LeafPairs pairs;
  {
    nb::gil_scoped_release release;
    threads = clamp_threads(threads);
    const ScanTables bounds(source, false, choose_isa(isa), threads, true);
    pairs = leaf_pairs(bounds, {B.data(), squared.data(), floor.data(), B.shape(0)},
                       {weight, largest_bias}, threads);
  }
  return nb::make_tuple(owned_array(std::move(pairs.begin)), owned_array(std::move(pairs.rows)));
}

size_t classes_of_leaves(In<float, 3> C, In<float, 2> W, In<double, 1> bias, In<double, 2> norms,
                         const std::string& metric, In<uint32_t, 1> first, In<int64_t, 1> number,
                         In<uint32_t, 1> begin, In<uint32_t, 1> rows, In<uint8_t, 2> B,
                         In<double, 1> squared, In<float, 1> floor, const std::string& isa,
                         size_t threads, Out<float, 2> scores, Out<int64_t, 2> best) {
  const Source source = leaf_source(C, W, bias, norms, metric);
  check_leaf_rows(B, squared, floor, source.shape);
  const size_t leaves = first.shape(0) - 1;
  require(first.shape(0) && begin.shape(0) == leaves + 1 && number.shape(0) == source.T,
          "first and begin must be [L + 1], number [T]");
  require(first.data()[0] == 0 && first.data()[leaves] == source.T && begin.data()[0] == 0 &&
              begin.data()[leaves] == rows.shape(0),
          "first must end with T, begin with the number of rows");
  for (size_t i = 0; i < leaves; ++i) {
    const uint32_t *f = first.data() + i, *b = begin.data() + i;
    require(f[1] > f[0] && f[1] - f[0] <= kTileWidth && b[1] >= b[0], "a leaf has 1 to 64 classes");
  }
  for (size_t i = 0; i < rows.shape(0); ++i)
    require(rows.data()[i] < B.shape(0), "rows must be below n");
  require(scores.shape(0) == B.shape(0) && best.shape(0) == B.shape(0) && scores.shape(1) &&
              scores.shape(1) == best.shape(1),
          "outputs must be [n, k]");
  nb::gil_scoped_release release;
  const LeafPairs pairs{{begin.data(), begin.data() + leaves + 1},
                        {rows.data(), rows.data() + rows.shape(0)}};
  return scan_leaves({source, first.data(), number.data(), leaves}, pairs,
                     {B.data(), squared.data(), floor.data(), B.shape(0)}, choose_isa(isa),
                     scores.shape(1), clamp_threads(threads), scores.data(), best.data());
}

}  // namespace

NB_MODULE(_native, module) {
  module.def("isas", &available_isas);
  module.def("choose", [](const std::string& name) { return std::string(choose_isa(name).name); });
  module.def("encode", &encode_rows);
  module.def("widen", &widen_values);
  module.def("accumulate", &add_codeword_sums);
  module.def("add_rows", &add_rows_of_groups);
  module.def("spread", &seed_codebooks);
  module.def("forest", &forest_of);
  module.def("reach", &reach);
  module.def("leaf_pairs", &pairs_of_leaves);
  module.def("scan_leaves", &classes_of_leaves);
  module.def("count_pairs", &count_join, nb::arg(), nb::arg().none(), nb::arg(), nb::arg(),
             nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg());
  nb::class_<PairStream>(module, "Pairs")
      .def("__init__", &start_pairs, nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg(),
           nb::arg(), nb::arg(), nb::arg(), nb::arg())
      .def("next", &next_pairs);
  nb::class_<NeighborIndex>(module, "NeighborIndex")
      .def("__init__", &build_neighbors)
      .def("search_all", &search_all_neighbors)
      .def_prop_ro("searched", [](const NeighborIndex& index) { return index.searched.load(); })
      .def("find", &find_neighbors)
      .def_prop_ro("size", &NeighborIndex::size)
      .def_prop_ro("tiles", &NeighborIndex::tiles);
  nb::class_<Tables>(module, "Tables")
      .def("__init__", &build_tables)
      .def("scan", &scan)
      .def("scores", &score_all)
      .def("within", &find_matches)
      .def_prop_ro("rescans", [](const Tables& tables) { return tables.scan->rescans.load(); })
      .def_prop_ro("candidates",
                   [](const Tables& tables) { return tables.scan->candidates.load(); })
      .def_prop_ro("exact_scores",
                   [](const Tables& tables) { return tables.scan->exact_scores.load(); })
      .def_prop_ro("bytes", [](const Tables& tables) { return tables.scan->bytes(); });
}
