// Every operator's schema, once. Kernels register themselves in the last lines of the file that holds them.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(sslfast, m) {
  // Rows scaled to length 1 (or divided by 1e-12 where they are shorter than that), and what they were scaled by.
  m.def("unit_rows_fwd(Tensor x) -> (Tensor unit, Tensor inverse_norm)");
  m.def("unit_rows_bwd(Tensor grad, Tensor unit, Tensor inverse_norm) -> Tensor");
  // Row i of z0 and row i of z1 are views of one image; temperature >= 0.025. lse: log-sum-exp per row of the 2N.
  m.def("nt_xent_fwd(Tensor z0, Tensor z1, float temperature) -> (Tensor loss, Tensor lse)");
  m.def("nt_xent_bwd(Tensor grad, Tensor z0, Tensor z1, Tensor lse, float temperature) -> (Tensor, Tensor)");
  // Log-sum-exp of r_i . c_j / temperature over the columns j != i + diagonal: over all, and over those of i's label.
  m.def(
      "score_lse_fwd(Tensor rows, Tensor columns, Tensor? row_label, Tensor? column_label, int diagonal, "
      "float temperature) -> (Tensor lse_all, Tensor lse_equal)");
  // The gradient of the rows. A side holds (grad_all, grad_equal, lse_all, lse_equal) for each row, or each column.
  m.def(
      "score_lse_bwd(Tensor rows, Tensor columns, Tensor? row_label, Tensor? column_label, int diagonal, "
      "float temperature, Tensor? row_side, Tensor? column_side) -> Tensor");
  // The gradients of the rows and, where wanted (else (0, D)), of the columns, many more, each of which meets each row.
  m.def(
      "score_lse_bank_bwd(Tensor rows, Tensor columns, float temperature, Tensor grad, Tensor lse, bool of_columns) -> "
      "(Tensor, Tensor)");
  // views: V matrices (B, K) of one head. columns (5, V, K) and rows (5, V, B): maxima and sums of the soft-maxes, and
  // what the gradient needs besides. Only the loss is differentiable.
  m.def(
      "self_classifier_fwd(Tensor[] views, float row_temperature, float column_temperature, int global_views, "
      "float eps) -> (Tensor loss, Tensor columns, Tensor rows)");
  // The two halves of forward, without a derivative, for rows that are part of a batch of `batch` rows: (3, V, K) and
  // (2, V, B), which become the batch's; then the rows' share of the loss, and all of columns and rows. Before backward
  // the last two columns become the batch's.
  m.def(
      "self_classifier_columns(Tensor[] views, float row_temperature, float column_temperature) -> "
      "(Tensor columns, Tensor rows)");
  m.def(
      "self_classifier_terms(Tensor[] views, Tensor columns, Tensor rows, float row_temperature, "
      "float column_temperature, int global_views, float eps, int batch) -> "
      "(Tensor loss, Tensor columns, Tensor rows)");
  // batch: as above; None where the views are the whole batch.
  m.def(
      "self_classifier_bwd(Tensor grad, Tensor[] views, Tensor columns, Tensor rows, float row_temperature, "
      "float column_temperature, int global_views, float eps, int? batch) -> Tensor");
  // Sinkhorn-Knopp of e^(x / epsilon), rows and columns normalised in turn. The first valid_rows rows (an int64 number;
  // without it all) take part; the assignments of the others are 0.
  m.def("sinkhorn_fwd(Tensor scores, Tensor? valid_rows, int iterations, float epsilon) -> Tensor assignments");
  // Its passes, for rows that several processes share: log sum_b e^(x / epsilon) per prototype; with a potential c, the
  // sums over b of softmax_k(x / epsilon - c); and these themselves (e^(x / epsilon - c) where not normalised).
  m.def("sinkhorn_log_sums(Tensor scores, Tensor? valid_rows, float epsilon) -> Tensor log_sums");
  m.def("sinkhorn_probability_sums(Tensor scores, Tensor potential, Tensor? valid_rows, float epsilon) -> Tensor sums");
  m.def(
      "sinkhorn_assign(Tensor scores, Tensor potential, Tensor? valid_rows, float epsilon, bool normalised) -> Tensor "
      "assignments");
  // SwAV: what the codes of each high-resolution view are reduced by, (H, K), from its scores and its queue's (none, or
  // one per view); the mean cross entropy of every other view's scores / temperature with these codes, which count as
  // constants. lse (V, B): what backward needs of every row's log-sum-exp; code_lse (H, B): that of the codes'
  // exponents.
  m.def("swav_potentials(Tensor[] high, Tensor[] queue, int iterations, float epsilon) -> Tensor potential");
  m.def(
      "swav_loss_fwd(Tensor[] high, Tensor[] low, Tensor potential, bool normalised, float temperature, float epsilon) "
      "-> (Tensor loss, Tensor lse, Tensor code_lse)");
  m.def(
      "swav_loss_bwd(Tensor grad, Tensor[] high, Tensor[] low, Tensor potential, Tensor lse, Tensor code_lse, bool "
      "normalised, float temperature, float epsilon) -> Tensor gradient");
  // Bits of the widest vectors that the CPU kernels use; a positive `most` sets a limit, 0 only asks.
  m.def("cpu_vector_bits(int most) -> int");
  // z0, z1: (N, D). statistics (2, 3, D): per view and column what is subtracted, twice, and what is multiplied by;
  // total: the N of the whole batch where these rows are a part of it. Of the gradients, only second derivatives need
  // eps. By way of the D x D correlation matrix:
  m.def(
      "barlow_twins_direct_fwd(Tensor z0, Tensor z1, float lambda_param, float eps) -> "
      "(Tensor loss, Tensor statistics, Tensor correlation)");
  m.def(
      "barlow_twins_direct_bwd(Tensor grad, Tensor z0, Tensor z1, Tensor statistics, Tensor correlation, int total, "
      "float lambda_param, float eps) -> (Tensor grad0, Tensor grad1)");
  m.def("barlow_twins_correlation(Tensor z0, Tensor z1, Tensor statistics, int total) -> Tensor");
  // By way of the N x N Gram matrices, of which only `rows` rows from `first` are formed: loss is those rows' share,
  // diagonal (D,) that of the correlation matrix, grams (2, rows, N). along (2, D): sum over those rows of the
  // normalised view times its gradient; the gradients are right as they are where rows = N.
  m.def(
      "barlow_twins_dual_fwd(Tensor z0, Tensor z1, int first, int rows, float lambda_param, float eps) -> "
      "(Tensor loss, Tensor statistics, Tensor diagonal, Tensor grams)");
  m.def(
      "barlow_twins_dual_bwd(Tensor grad, Tensor z0, Tensor z1, Tensor statistics, Tensor diagonal, Tensor grams, "
      "int first, float lambda_param, float eps) -> (Tensor grad0, Tensor grad1, Tensor along)");
  // A bank of classifier heads (docs/head_bank.md). heads (M, 5 + layers): optimizer (0 SGD, 1 Adam, 2 AdamW, 3 LARS),
  // steps done, activations dropped of 65536, key of the dropout, number of layers, their outputs. numbers (M, 5):
  // momentum, decay of the second moment, epsilon, weight decay, LARS's trust coefficient. rates (M, steps). states:
  // per head weights and moments in panels (sslfast.search.bank). Trains on the rows that `order` names, a label being
  // that of row modulo the number of labels; returns the loss of each head and step.
  m.def(
      "head_bank_train(Tensor features, Tensor labels, Tensor order, Tensor heads, Tensor numbers, Tensor rates, "
      "Tensor(a!)[] states, int batch, bool half) -> Tensor");
  // Of each head how many rows it gets right (NaN where a logit is not finite), and the sum of their cross-entropies.
  m.def("head_bank_evaluate(Tensor features, Tensor labels, Tensor heads, Tensor[] states, bool half) -> Tensor");
  // Augmented views (docs/views.md) into out (V, 3, size, size). View v shows the image whose first byte is offsets[v]
  // of pixels; sizes (V, 3): its height, width and bytes per row; column and channel: bytes between them (3 and 1
  // interleaved, 1 and a plane's planar, 1 and 0 grey). whole (V, 11) and real (V, 14): what was drawn for the view.
  m.def(
      "render_views(Tensor(a!) out, Tensor pixels, Tensor offsets, Tensor sizes, int column, int channel, Tensor "
      "whole, "
      "Tensor real, int blur_radius, bool parallel) -> ()");
  // The mixed edge (docs/ops/mixed_edge.md) of the primitives with these places in sslfast's list. running: a mean and
  // a variance per batch normalisation that take the place of the batch's, or nothing. statistics (norms, 2, c): means
  // and variances that were used; saved: what backward reads, known to the device's kernel alone.
  m.def(
      "mixed_edge_fwd(Tensor x, Tensor alpha, Tensor[] weights, Tensor[] running, Tensor? skip_mask, int stride, "
      "int k, int[] primitives, float eps) -> (Tensor out, Tensor statistics, Tensor saved)");
  // batch: whether the statistics are the batch's own. The weights' gradients come flat, one after the other.
  m.def(
      "mixed_edge_bwd(Tensor grad, Tensor x, Tensor alpha, Tensor[] weights, Tensor? skip_mask, Tensor statistics, "
      "Tensor saved, bool batch, int stride, int k, int[] primitives, float eps) -> "
      "(Tensor of_x, Tensor of_alpha, Tensor of_weights)");
  // Running means and variances move towards a batch's, whose variance is that of `count` numbers, unbiased.
  m.def("mixed_edge_track(Tensor(a!)[] running, Tensor statistics, float momentum, int count) -> ()");
  m.def("cpu_has_bfloat16() -> bool");
  // Floating-point operations done: the register tile of our products, `rounds` times on each of `threads` threads.
  m.def("cpu_multiply(int threads, int rounds, bool half=False) -> int");
}
