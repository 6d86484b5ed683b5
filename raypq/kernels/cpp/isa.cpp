// The kernels of one instruction set; CMake compiles this file once for each.
// -ffp-contract=fast is safe here: where a result must be exact, the products are of float32 values
// in float64, which are exact, so fusing them changes nothing. The last step of a score (scale,
// offset, bias) is compiled elsewhere, without contraction.
#include "isa.hpp"

#include "simd.hpp"

#include "encode.inl"
#include "exact.inl"
#include "lut.inl"
#include "scan.inl"
#include "near.inl"
#include "select.inl"
#include "widen.inl"

#define RAYPQ_TEXT(x) #x
#define RAYPQ_NAME(x) RAYPQ_TEXT(x)
#define RAYPQ_JOIN(a, b) a##b
#define RAYPQ_ISA_OF(ns) RAYPQ_JOIN(isa_, ns)

namespace raypq {

const Isa RAYPQ_ISA_OF(RAYPQ_NS) = {
    .name = RAYPQ_NAME(RAYPQ_NS),
    .codeword_tile = RAYPQ_NS::kCodewords,
    .most_fine = RAYPQ_NS::kParts == 1 ? kFine : kFineInParts,
    .encode = RAYPQ_NS::encode,
    .widen = RAYPQ_NS::widen,
    .lut = RAYPQ_NS::lut,
    .quantise = RAYPQ_NS::quantise,
    .thresholds = RAYPQ_NS::thresholds,
    .scan_rows = RAYPQ_NS::scan_rows,
    .scan_columns = RAYPQ_NS::scan_columns,
    .add_rows = RAYPQ_NS::add_rows,
    .scan_two = RAYPQ_NS::scan_two,
    .kth_largest = RAYPQ_NS::kth_largest,
    .near_kth = RAYPQ_NS::near_kth,
    .ranks = RAYPQ_NS::ranks,
    .moments = RAYPQ_NS::moments,
    .rescore = RAYPQ_NS::rescore,
    .add_parts = RAYPQ_NS::add_parts,
    .near_columns = RAYPQ_NS::near_columns,
    .column_sums = RAYPQ_NS::column_sums,
    .near_table = RAYPQ_NS::near_table,
};

}  // namespace raypq
