"""What daily work (-m "not slow") leaves out, beside the tests that carry the mark themselves.

They are the dearest by CPU seconds; a cheaper case, or a cheaper test of the same feature, stays. A test that is renamed
has to be renamed here: a name that a collected file does not have stops the collection.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

# Of these the cases that are named are kept.
KEPT: dict[str, tuple[str, ...]] = {
    "benchmarks/test_gpu.py::test_a_cpu_gives_the_stored_numbers": ("llama",),
    "benchmarks/test_gpu.py::test_pytorch_trains_on_the_same_loss": ("sft",),
    "cli/test_fusion_experiments.py::test_fusechat_leaves_a_target_a_source": ("own",),
    "cli/test_preference_pages.py::test_fuserl_from_responses_to_a_model": ("dpo",),
    "cli/test_reports.py::test_sft_reports_the_loss_of_held_out_records": ("none",),
    "losses/test_fusion_golden.py::test_loss_and_gradient": ("0", "33"),
    "merge/test_averaging.py::test_golden": (
        "mergekit000-linear-float32", "mergekit033-model_stock-float32", "mergekit041-nearswap-float32",
        "mergekit042-arcee_fusion-float32", "mergekit043-passthrough-float32", "mergekit044-ram-float32",
        "mergekit045-ramplus_tl-float32",
    ),
    "merge/test_estimate.py::test_every_method_has_a_dry_run": (
        "linear-parameters0", "slerp-parameters7", "ties-parameters12", "sce-parameters19", "varm-parameters23",
    ),
    "merge/test_spherical.py::test_golden": (
        "mergekit004-slerp", "mergekit005-slerp", "mergekit006-slerp", "mergekit007-nuslerp", "mergekit011-nuslerp",
        "mergekit012-multislerp", "mergekit014-multislerp", "mergekit015-karcher",
    ),
    "merge/test_spherical.py::test_identical_models_give_that_model": ("float32",),
    "merge/test_task_vectors.py::test_density_1_is_no_sparsifier": ("float32-ties", "float32-della"),
    "merge/test_task_vectors.py::test_della_keeps_with_the_official_probabilities": ("mergekit028",),
    "merge/test_task_vectors.py::test_golden": (
        "mergekit017", "mergekit018", "mergekit021", "mergekit024", "mergekit026", "mergekit027", "mergekit028",
        "mergekit029", "mergekit031", "mergekit032", "mergekit035", "fuseai007", "fuseai008",
    ),
    "models/test_folders.py::test_rotary_settings_are_saved_in_both_forms": ("llama-3.1", "qwen2-windows"),
    "models/test_experts.py::test_values_and_gradients_are_those_of_a_loop_over_experts": ("two of four",),
    "models/test_parts.py::test_a_stack_of_every_kind": ("sandwich", "windows and bases by layer"),
    "models/test_folders.py::test_a_stored_head_that_differs_is_kept": ("llama-mha",),
    "ops/test_attention.py::test_segments_windows_and_caps": ("None-0-7",),
    "ops/test_attention.py::test_keys_shared_by_rows": ("6",),
    "ops/test_grouped.py::test_values_and_gradients": ("[5, 0, 17, 0, 1]",),
    "ops/test_kernels.py::test_values_and_gradients": (
        "splash-interpreted-packed-by layer-12 over 4",
        "splash-interpreted-shared prompt-between branch and row-12 over 4",
        "splash-interpreted-prompt of its own-between prompt and branch-MHA",
        "xla-shared prompt-none-narrow values", "xla-packed-by layer-MHA", "xla-shared prompt-by layer-MQA", "xla-prompt of its own-by layer-MHA",
    ),
    "ops/test_linear_logprobs.py::test_several_entries_a_position": ("4-1", "20-2"),
    "ops/test_linear_logprobs.py::test_values_and_gradients_equal_plain_softmax": (
        "None-1-1-1", "None-1-1000-11", "None-1-16-97", "4.0-1-1-11", "None-2-16-64", "4.0-2-16-97", "4.0-2-1000-97",
    ),
    "ops/test_remat.py::test_same_gradient": ("full-xla",),
    "ops/test_splash.py::test_segments_windows_and_caps": ("40-windows1-2.0",),
    "ops/test_splash.py::test_continuations_of_one_prompt": ("70-2-50",),
    "parity/test_encoders.py::test_greedy_equals_transformers": ("bart-scaled",),
    "parity/test_encoders.py::test_hidden_states_of_bert": ("bert-types",),
    "parity/test_encoders.py::test_logits_and_files": ("t5-1.1",),
    "parity/test_generation.py::test_greedy_equals_transformers_and_the_uncached_model": ("llama-gqa-tied",),
    "parity/test_gguf.py::test_llama_as_transformers_reads_the_same_file": ("Q4_1",),
    "parity/test_gguf.py::test_the_numbers_are_those_of_the_folder_that_was_converted": ("gemma3",),
    "parity/test_logits.py::test_logits_files_and_cache": ("llama-gqa-tied", "gemma2"),
    "plan/test_cuda.py::test_losses_without_a_mesh": ("sft", "wrpo"),
    "plan/test_cuda.py::test_programs_of_the_plan": (
        "llama TrainStep wrpo full stored", "gemma2 ScoreStep", "gemma3 TeacherStep", "gemma3 Prefill", "gemma2 Decode",
        "MergeTensor linear", "MergeTensor karcher", "MergeTensor ties", "MergeTensor sce", "MergeTensor varm_linear",
    ),
    "runs/test_source_values.py::test_log_probs_in_the_sources_own_tokens": ("zoo:plants-qwen",),
    "sampling/test_session.py::test_a_session_says_what_the_whole_text_says": ("windowed", "latent", "encoder"),
    "train/test_fusion.py::test_the_step_s_loss_is_the_dense_one": ("kl-bucket-all",),
    "train/test_fusion_golden.py::test_the_training_path_gives_the_official_loss": ("0", "33"),
    "train/test_lora.py::test_a_folder_of_peft_is_read": ("more0",),
    "train/test_lora.py::test_every_adapter_that_may_be_trained_counts": ("deepseek-v2",),
    "train/test_packing.py::test_same_loss_metrics_and_gradient": ("dpo with sft-windows and caps",),
    "train/test_trackers.py::test_a_tracker_that_fails_ends_no_training": ("log",),
    "zoo/test_models.py::test_accuracy_is_what_the_manifest_says": ("target",),
}  # fmt: skip

LEFT_OUT = (
    "align/test_corpus.py::test_processes_change_nothing",
    "cli/test_bad_input.py::test_weights_that_are_not_finite",
    "cli/test_entries.py::test_a_store_is_told_about_and_another_one_s_part_is_refused",
    "cli/test_entries.py::test_quadruples_without_a_source_are_dropped_by_sft",
    "cli/test_merge_sweep.py::test_every_value_is_merged_measured_and_reported",
    "cli/test_preference_pages.py::test_fusechat3_from_responses_to_a_model",
    "cli/test_preference_pages.py::test_infifpo_from_responses_to_a_model",
    "cli/test_preference_pages.py::test_prompts_that_pairs_have_are_left_out_of_ready_sft_data",
    "cli/test_preference_pages.py::test_whether_a_response_passed_is_true_or_false",
    "cli/test_seft.py::test_a_run_from_pairs_to_a_policy",
    "cli/test_several_devices.py::test_same_metrics",
    "cli/test_sweeps.py::test_a_sweep_goes_on_past_failures_and_is_finished_by_the_same_command",
    "cli/test_sweeps.py::test_runs_end_with_the_sweep_or_are_not_started_twice",
    "cli/test_sweeps.py::test_wrpo_learns_the_next_best_source_response_from_pairs_of_the_sources",
    "merge/test_estimate.py::test_the_peak_is_what_a_merge_takes",
    "merge/test_spherical.py::test_the_order_of_models_changes_only_rounding",
    "models/test_folders.py::test_defaults_of_fields_that_are_left_out",
    "models/test_folders.py::test_two_rotary_settings_are_saved_in_both_forms",
    "models/test_parts.py::test_stacks_of_different_parts_follow_each_other",
    "multihost/test_teacher_store.py::test_a_mesh_over_two_hosts",
    "multihost/test_teacher_store.py::test_two_hosts_write_the_store_of_one",
    "multihost/test_training.py::test_one_process_is_preempted_too",
    "plan/test_compile.py::test_a_program_that_does_not_fit_is_told_with_what_overflows",
    "plan/test_compile.py::test_a_token_takes_no_less_than_reading_weights_and_cache_once",
    "plan/test_compile.py::test_other_programs_are_planned",
    "runs/test_forecast.py::test_a_run_tells_it_before_training_and_in_its_report",
    "sampling/test_generate.py::test_edges",
    "sampling/test_generate.py::test_every_token_has_its_own_randomness",
    "sampling/test_generate.py::test_half_precision",
    "sampling/test_generate.py::test_samples_depend_on_seed_prompt_and_number_only",
    "tpu_scripts/test_preflight.py::test_hosts_that_differ_are_named",
    "train/test_alike.py::test_an_objective_is_like_itself",
    "train/test_fits.py::test_a_target_whose_positions_are_the_length_of_the_texts_is_trained",
    "train/test_fused_objectives.py::test_the_revisers_two_means_depend_on_no_split",
    "train/test_lora.py::test_accumulation_remat_and_rank_0",
    "train/test_lora.py::test_adapters_that_are_refused",
    "train/test_lora.py::test_no_gradient_of_a_frozen_weight_is_computed",
    "train/test_lora.py::test_the_reference_is_the_base",
    "train/test_metrics.py::test_micro_batches_change_no_metric",
    "train/test_optimise.py::test_sigterm_during_the_last_evaluation_is_not_forgotten",
    "train/test_optimise.py::test_sigterm_while_the_last_checkpoint_is_written",
    "train/test_packing.py::test_packed_training_on_eight_devices_gives_the_metrics_of_plain_rows_on_one",
    "train/test_shared_prompt.py::test_a_window_wider_than_prompt_and_answer_cuts_nothing",
    "train/test_teachers.py::test_rows_are_the_dense_distributions",
    "train/test_trackers.py::test_tensorboard_shows_each_step_once_after_a_kill",
    "zoo/test_models.py::test_transformers_loads_the_folder_and_agrees",
)


def mark(items: Sequence[pytest.Item]) -> None:
    """Mark as slow what the tables leave out."""
    names = {f"tests/{name}" for name in (*KEPT, *LEFT_OUT)}
    kept = {f"tests/{name}[{case}]" for name, cases in KEPT.items() for case in cases}
    found = {item.nodeid for item in items} | {item.nodeid.partition("[")[0] for item in items}
    whole = {path for path in {name.partition("::")[0] for name in names} if path in _arguments(items)}
    missing = [name for name in sorted(names | kept) if name.partition("::")[0] in whole and name not in found]
    if missing:
        raise pytest.UsageError(f"tests/daily.py names tests that there are not: {', '.join(missing)}")
    for item in items:
        if item.nodeid.partition("[")[0] in names and item.nodeid not in kept:
            item.add_marker(pytest.mark.slow)


def _arguments(items: Sequence[pytest.Item]) -> set[str]:
    """The collected files, where whole files were asked for, not single tests of them."""
    asked = " ".join(items[0].config.args) if items else "::"
    return set() if "::" in asked else {item.nodeid.partition("::")[0] for item in items}
