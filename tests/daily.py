"""What daily work (-m "not slow") leaves out, beside the tests that carry the mark themselves.

They are the dearest by CPU seconds; a cheaper case, or a cheaper test of the same feature, stays. A test that is renamed
has to be renamed here: a name that a collected file does not have stops the collection.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

# Of these the cases that are named are kept.
KEPT: dict[str, tuple[str, ...]] = {
    "align/test_properties.py::test_every_token_of_both_sides_is_aligned_in_order": (
        "llama-source-gemma-source-chat_v2", "qwen-source-gemma-source-chat_v1", "llama-source-gemma-source-fusellm",
    ),
    "align/test_raw_tokenizers.py::test_real_vocabularies_give_the_golden_ids": ("llama2-llama2.model-0",),
    "align/test_real_tokenizers.py::test_a_text_is_what_its_pieces_spell": ("deepseekv3", "qwen3", "smollm2"),
    "align/test_vocabulary_golden.py::test_cooccurrence": (
        "small_spbpe-small_spuni-spelled", "small_spbpe-small_spuni-strings", "small_spbpe-small_bbpe-spelled",
    ),
    "benchmarks/test_gpu.py::test_a_cpu_gives_the_stored_numbers": ("llama",),
    "benchmarks/test_gpu.py::test_pytorch_trains_on_the_same_loss": ("sft",),
    "cli/test_align_report.py::test_every_kind_of_rules": (
        "{'one_to_many': False, 'max_texts': 5}", "{'variant': 'fusellm', 'map': 'exact', 'align': 'byte_offsets'}",
    ),
    "cli/test_profuser.py::test_what_cannot_be_done_is_refused": (
        "loss.first-epochs-loss.both-epochs-", "train.epochs-", "sample.num-samples-",
    ),
    "cool/test_golden.py::test_short_caps_and_short_contexts": ("rand",),
    "losses/test_alirector.py::test_golden_causal_distillation": ("compat",),
    "losses/test_alirector.py::test_golden_distillation_and_pytorchs_gradients": ("0-reverse-logits",),
    "losses/test_divergences.py::test_a_list_of_the_whole_vocabulary_gives_the_textbook_divergences": (
        "ignore", "bucket",
    ),
    "losses/test_divergences.py::test_lists_are_compared_as_trl_compares_them": (
        "jsd-renormalise", "reverse_kl-renormalise", "jsd-bucket",
    ),
    "losses/test_divergences.py::test_masked_positions_have_no_gradient_whatever_stands_there": ("tv", "reverse_kl"),
    "losses/test_divergences.py::test_what_the_student_finds_impossible": (
        "kl-ignore", "ce-ignore", "reverse_kl-ignore",
    ),
    "losses/test_doctests.py::test_examples_give_what_they_say": (
        "fusion_jax.losses.reductions.divide", "fusion_jax.losses.reductions.weighted",
        "fusion_jax.losses.preference.wrpo_ipo",
    ),
    "losses/test_fused_preference_golden.py::test_a_source_without_a_value_is_not_there": ("confidence", "average"),
    "losses/test_fused_preference_golden.py::test_infifpo_from_logits_of_models_with_other_vocabularies": (
        "float64-from_logits_1",
    ),
    "losses/test_fused_preference_golden.py::test_infifpo_from_sums": (
        "float64-extreme_margin", "float64-exact_tie", "float64-average_no_clip",
    ),
    "losses/test_mktod.py::test_float32_tiny_probabilities_and_what_is_not_there": ("token",),
    "losses/test_mktod.py::test_marginal_likelihood_is_the_dense_one": ("0.1-sequence", "1.0-token"),
    "losses/test_preference_golden.py::test_pairwise_from_logits": ("float64-dpo_full_sum",),
    "losses/test_preference_golden.py::test_wrpo_from_logits": ("float64-wrpo_full_two_positives_averaged",),
    "losses/test_preference_golden.py::test_wrpo_from_sequence_logprobs": ("float64-wrpo_logps_extreme_margins",),
    "losses/test_schedules.py::test_golden_learning_rates": ("linear-1500", "linear-4600", "cosine-1000"),
    "merge/test_averaging.py::test_golden": (
        "mergekit043-passthrough-float32", "mergekit041-nearswap-float32", "mergekit044-ram-float32",
    ),
    "merge/test_averaging.py::test_identical_models_give_that_model": (
        "passthrough-bfloat16", "passthrough-float32", "passthrough-float16",
    ),
    "merge/test_doctests.py::test_every_method_has_an_example": ("ramplus_tl", "dare_linear", "della"),
    "merge/test_doctests.py::test_examples_give_what_they_say": (
        "fusion_jax.merge.names.layer_path", "fusion_jax.merge.methods.task_vectors.della_linear",
        "fusion_jax.merge.names.ends_of",
    ),
    "merge/test_estimate.py::test_every_method_has_a_dry_run": (
        "varm-parameters23", "slerp-parameters7", "sce-parameters19",
    ),
    "merge/test_select.py::test_selection_is_a_stable_sort": ("shape1-edges", "shape0-edges", "shape0-zero"),
    "merge/test_spherical.py::test_golden": ("mergekit006-slerp", "mergekit005-slerp", "mergekit014-multislerp"),
    "merge/test_spherical.py::test_identical_models_give_that_model": ("float32",),
    "merge/test_task_vectors.py::test_della_keeps_with_the_official_probabilities": ("mergekit028",),
    "merge/test_task_vectors.py::test_density_1_is_no_sparsifier": ("float32-ties", "float32-della"),
    "merge/test_task_vectors.py::test_golden": ("mergekit032", "mergekit029", "mergekit024"),
    "models/test_configs.py::test_each_field_of_each_family": ("baichuan2-7b", "baichuan2-13b", "internlm2"),
    "models/test_folders.py::test_a_stored_head_that_differs_is_kept": ("llama-mha",),
    "models/test_folders.py::test_rotary_settings_are_saved_in_both_forms": ("llama-3.1", "qwen2-windows"),
    "models/test_parts.py::test_a_stack_of_every_kind": ("sandwich", "windows and bases by layer"),
    "models/test_parts.py::test_layers_without_attention_or_feed_forward": ("lost2-parallel",),
    "ops/test_attention.py::test_keys_shared_by_rows": ("6",),
    "ops/test_attention.py::test_segments_windows_and_caps": ("None-0-7",),
    "ops/test_grouped.py::test_values_and_gradients": ("[5, 0, 17, 0, 1]",),
    "ops/test_kernels.py::test_values_and_gradients": (
        "splash-interpreted-prompt of its own-between prompt and branch-MHA", "xla-packed-by layer-MHA",
        "xla-shared prompt-none-narrow values",
    ),
    "ops/test_linear_kl.py::test_values_and_gradients_equal_dense_softmaxes": (
        "None-mixed-1-1-1-33554432", "None-mixed-11-16-2-0", "4.0-mixed-97-16-2-0",
    ),
    "ops/test_linear_logprobs.py::test_several_entries_a_position": ("4-1", "20-2"),
    "ops/test_linear_logprobs.py::test_values_and_gradients_equal_plain_softmax": (
        "None-1-1-1", "None-1-1000-11", "None-1-16-97", "4.0-1-1-11", "None-2-16-64", "4.0-2-16-97", "4.0-2-1000-97",
    ),
    "ops/test_remat.py::test_same_gradient": ("full-xla",),
    "ops/test_splash.py::test_segments_windows_and_caps": ("40-windows1-2.0",),
    "parity/test_encoders.py::test_logits_and_files": ("t5-1.1",),
    "parity/test_gguf.py::test_llama_as_transformers_reads_the_same_file": ("Q4_1",),
    "parity/test_gguf.py::test_the_numbers_are_those_of_the_folder_that_was_converted": ("gemma3",),
    "parity/test_logits.py::test_logits_files_and_cache": ("llama-gqa-tied",),
    "parity/test_logits.py::test_sequence_classification": ("mpt-2", "llama-gqa-tied-1"),
    "plan/test_cuda.py::test_losses_without_a_mesh": ("sft",),
    "plan/test_cuda.py::test_programs_of_the_plan": (
        "MergeTensor varm_linear", "MergeTensor linear", "MergeTensor sce",
    ),
    "prune/test_nemotron.py::test_readers_find_what_they_ask_for": ("llama-3.1-changes1",),
    "prune/test_search.py::test_official_ablations": ("qwen2-gqa-pad-7l",),
    "prune/test_search.py::test_official_searches": ("qwen2-gqa-pad-7l-mlp", "llama-mha-8l-mlp"),
    "rewards/test_code_tests.py::test_harm_ends_the_program_and_nothing_else": (
        "resource.setrlimit(resource.RL", "pathlib.Path('/tmp/fusion_jax_", "socket.socket()",
    ),
    "runs/test_source_values.py::test_log_probs_in_the_sources_own_tokens": ("zoo:plants-qwen",),
    "sampling/test_samplers.py::test_draws_follow_the_softmax": ("128",),
    "sampling/test_samplers.py::test_the_nucleus_is_the_smallest_sufficient_set": ("8.0-0.0", "8.0-0.5", "0.01-0.1"),
    "store/test_bucket.py::test_a_checkpoint_that_the_bucket_does_not_give_is_not_called_damaged": (
        "default/d/-400-the bucket's server refused \\\\(.*400\\\\). Run the",
    ),
    "store/test_lease.py::test_training_that_lost_its_folder_writes_nothing_more": ("reference.npy",),
    "tpu_scripts/test_job.py::test_a_preempted_command_and_one_that_lost_a_host_start_again_with_resume": (
        "given4-again4", "given2-again2", "given5-again5",
    ),
    "train/test_fused_objectives.py::test_infifpo_of_scores": (
        "label_smoothing-changes8", "no_clip_logp_distance-changes4", "ipo-changes5",
    ),
    "train/test_fusion.py::test_the_step_s_loss_is_the_dense_one": ("kl-bucket-all",),
    "train/test_fusion_golden.py::test_the_training_path_gives_the_official_loss": ("33",),
    "train/test_lora.py::test_a_folder_of_peft_is_read": ("more0",),
    "train/test_opinions.py::test_a_source_equal_to_the_pivot_on_texts": (
        "mined-dp", "exact-byte_offsets", "statistics-byte_offsets",
    ),
    "train/test_opinions.py::test_what_ends_a_turn_or_a_text_is_mapped_by_meaning": ("True-exact", "True-statistics"),
    "zoo/test_models.py::test_accuracy_is_what_the_manifest_says": ("target",),
    "zoo/test_tokenizers.py::test_the_prompt_is_a_prefix_in_characters_and_in_tokens": (
        "label-plants-llama", "label-gemma-sentence", "plain-plants-target",
    ),
}  # fmt: skip

# By file.
LEFT_OUT: dict[str, tuple[str, ...]] = {
    "align/test_classes.py": ("test_real_tokenizers",),
    "align/test_corpus.py": ("test_a_killed_run_goes_on_and_leaves_no_process", "test_processes_change_nothing"),
    "asking/test_asking_once.py": ("test_a_run_that_is_killed_asks_nothing_twice",),
    "cli/test_align_report.py": ("test_report_of_files_and_languages_in_both_directions",),
    "cli/test_alirector.py": (
        "test_drafts_and_alignment_models_are_of_the_second_part", "test_no_more_is_trained_than_arms_ask_for",
        "test_scores_are_those_of_what_was_written",
    ),
    "cli/test_bad_input.py": ("test_resume_with_other_examples_is_refused", "test_weights_that_are_not_finite"),
    "cli/test_distil.py": ("test_texts_instead_of_chats",),
    "cli/test_entries.py": (
        "test_a_store_is_told_about_and_another_one_s_part_is_refused",
        "test_quadruples_without_a_source_are_dropped_by_sft", "test_rows_are_named_by_the_stages_that_ran",
    ),
    "cli/test_fusion_experiments.py": ("test_fusechat_leaves_a_target_a_source",),
    "cli/test_imports.py": ("test_experiments_import_nothing_that_help_and_refusals_do_not_need",),
    "cli/test_kca.py": ("test_ready_partitions_need_no_helper",),
    "cli/test_merge_sweep.py": ("test_every_value_is_merged_measured_and_reported",),
    "cli/test_mktod.py": ("test_a_run_from_files_to_a_report",),
    "cli/test_preference_pages.py": (
        "test_fusechat3_from_responses_to_a_model", "test_fuserl_from_responses_to_a_model",
        "test_infifpo_from_released_records_trains_the_same_model", "test_infifpo_from_responses_to_a_model",
        "test_prompts_that_pairs_have_are_left_out_of_ready_sft_data",
        "test_the_same_text_under_two_ids_is_in_one_part_only", "test_whether_a_response_passed_is_true_or_false",
    ),
    "cli/test_profuser.py": (
        "test_both_arms_have_as_many_steps_and_learn", "test_live_sources_teach_what_stored_ones_do",
        "test_the_report_counts_what_sources_and_judges_compute", "test_winners_by_reading_are_those_of_transformers",
        "test_winners_by_writing_have_most_votes",
    ),
    "cli/test_prune.py": (
        "test_a_pruned_folder_and_its_report", "test_a_pruned_model_learns_again", "test_a_search_is_used_again",
        "test_interrupted_it_goes_on_behind_its_last_step", "test_what_is_served_without_the_blocks",
    ),
    "cli/test_reports.py": ("test_sft_reports_the_loss_of_held_out_records", "test_the_report_of_a_whole_run"),
    "cli/test_reward_model.py": ("test_a_model_trained_on_pairs_judges_a_run",),
    "cli/test_role_interact.py": (
        "test_a_model_answers_and_what_does_not_fit_is_cut",
        "test_a_run_that_is_killed_goes_on_and_gives_the_same_report",
    ),
    "cli/test_seft.py": ("test_a_run_from_pairs_to_a_policy",),
    "cli/test_several_devices.py": ("test_same_metrics",),
    "cli/test_sweeps.py": (
        "test_a_sweep_goes_on_past_failures_and_is_finished_by_the_same_command",
        "test_cells_by_name_several_files_and_a_model_that_no_run_has",
        "test_reading_a_sweep_leaves_the_devices_to_its_runs", "test_runs_end_with_the_sweep_or_are_not_started_twice",
        "test_wrpo_learns_the_next_best_source_response_from_pairs_of_the_sources",
    ),
    "cool/test_golden.py": (
        "test_answers_alone_and_the_one_that_all_like_best", "test_every_step_of_every_trace",
        "test_one_prompt_gives_what_a_batch_gives", "test_passes_through_each_model_are_bounded",
    ),
    "cool/test_together.py": (
        "test_models_with_templates_of_their_own", "test_texts_that_a_tokenizer_cannot_hold",
        "test_texts_that_end_an_answer", "test_tokenizers_that_share_no_boundary",
        "test_where_a_word_must_begin_and_how_many_make_a_segment",
    ),
    "dialogue/test_networks.py": (
        "test_golden_retriever_as_a_folder", "test_golden_t5_and_fusion_in_decoder", "test_golden_top_k_and_negative",
    ),
    "evals/test_lm_eval.py": (
        "TestArgumentsOfAnswers::test_equal_requests_are_answered_once_unless_they_are_sampled",
        "TestWithThePackage::test_hf_gives_the_same", "test_pytorch_gives_the_same_answers",
        "test_pytorch_gives_the_same_likelihoods_of_texts", "test_pytorch_gives_the_same_scores",
    ),
    "evals/test_sampled.py": (
        "test_a_wording_that_the_model_cannot_read_leaves_the_probability_unknown",
        "test_the_mean_reward_is_that_of_the_same_samples",
        "test_the_probability_of_each_wording_is_that_of_transformers_and_adds_up",
    ),
    "fuzz/test_fuzz.py": (
        "test_chats", "test_config_files", "test_recipes", "test_records", "test_safetensors_headers",
        "test_sentences_and_their_corrections",
    ),
    "install/test_install.py": ("test_the_wheel_holds_every_file_of_the_package",),
    "kca/test_exam.py": ("test_any_batch_is_one_by_one", "test_turned_options_are_averaged"),
    "library/test_extending.py": (
        "test_a_family_of_ones_own_reads_and_writes_its_files", "test_a_loss_of_ones_own_trains",
    ),
    "library/test_rooms.py": (
        "test_files_do_not_import_in_a_circle", "test_rooms_import_downwards_only",
        "test_the_library_imports_no_experiment",
    ),
    "losses/test_alirector.py": ("test_golden_terms",),
    "losses/test_divergences.py": ("test_values_and_gradients_are_the_dense_ones",),
    "losses/test_fusion_golden.py": ("test_loss_and_gradient",),
    "merge/test_encoder_decoders.py": ("test_a_linear_merge_of_two",),
    "merge/test_estimate.py": ("test_the_peak_is_what_a_merge_takes",),
    "merge/test_executor.py": (
        "test_output_is_a_folder_with_its_provenance", "test_rules_on_varms_granularity_hold_tensor_by_tensor",
    ),
    "merge/test_experts.py": ("test_weights_that_differ_from_layer_to_layer",),
    "merge/test_spherical.py": ("test_the_order_of_models_changes_only_rounding",),
    "merge/test_trees.py": ("test_trees_in_memory_are_merged_as_folders_are",),
    "models/test_experts.py": (
        "test_values_and_gradients_are_those_of_a_loop_over_experts", "test_what_routers_are_counted_to_have_done",
    ),
    "models/test_folders.py": (
        "test_defaults_of_fields_that_are_left_out", "test_two_rotary_settings_are_saved_in_both_forms",
    ),
    "models/test_int8.py": (
        "test_generate_and_teachers_take_the_setting",
        "test_logits_generation_and_teaching_are_those_of_the_rounded_weights",
    ),
    "models/test_latent.py": (
        "test_latents_as_keys_and_values_give_what_those_of_every_head_give", "test_rows_that_share_a_prompt",
    ),
    "models/test_nemotron_nas.py": ("test_layers_that_differ_are_those_of_transformers",),
    "models/test_parts.py": ("test_stacks_of_different_parts_follow_each_other",),
    "multihost/test_teacher_store.py": ("test_a_mesh_over_two_hosts", "test_two_hosts_write_the_store_of_one"),
    "multihost/test_training.py": ("test_one_process_is_preempted_too",),
    "ops/test_splash.py": ("test_continuations_of_one_prompt",),
    "parity/test_beams.py": ("test_all_hypotheses_equal_those_of_transformers", "test_no_ngram_occurs_twice"),
    "parity/test_encoders.py": (
        "test_greedy_equals_transformers", "test_hidden_states_of_bert",
        "test_rows_that_are_not_an_encoder_s_are_not_trained_on", "test_text_in_and_out_of_an_encoder_decoder",
        "test_the_repetition_penalty_is_that_of_what_is_written",
    ),
    "parity/test_expert_training.py": ("test_a_step_of_sft",),
    "parity/test_generation.py": ("test_greedy_equals_transformers_and_the_uncached_model",),
    "parity/test_layouts.py": ("test_baichuan_is_llama_in_another_layout_or_has_alibi",),
    "parity/test_training.py": ("test_decoders",),
    "plan/test_command.py": ("test_a_search_is_planned_with_the_calls_that_it_makes",),
    "plan/test_compile.py": (
        "test_a_program_that_does_not_fit_is_told_with_what_overflows",
        "test_a_step_never_holds_or_gathers_the_vocabulary",
        "test_a_token_takes_no_less_than_reading_weights_and_cache_once", "test_other_programs_are_planned",
        "test_the_page_says_what_fits_whose_figures_and_how_long_a_run_takes",
        "test_the_state_lies_in_equal_parts_on_all_chips", "test_times_follow_from_the_flops_of_the_program",
    ),
    "plan/test_correcting.py": ("test_the_step_has_both_alignment_models_as_arguments",),
    "plan/test_experts.py": ("test_a_step_computes_the_chosen_experts",),
    "plan/test_llama.py": ("test_no_array_is_as_large_as_the_logits_of_a_chip", "test_peaks_of_memory_do_not_grow"),
    "prune/test_export.py": ("test_the_folder_gives_the_official_logits",),
    "prune/test_native.py": (
        "test_a_model_of_no_folder_is_saved_too", "test_a_native_folder_is_the_model_without_its_blocks",
        "test_a_pruned_model_is_pruned_further_saved_again_and_given_in_other_forms", "test_int8",
        "test_stacks_are_cut_and_joined",
    ),
    "prune/test_nemotron.py": ("test_transformers_loads_it_with_the_folder_s_own_code",),
    "prune/test_orders.py": ("test_orders_and_their_curves",),
    "prune/test_pruned_models.py": ("test_adapters", "test_training_saves_and_resumes_a_model_without_a_layer"),
    "resume/test_sigkill.py": ("test_killed_runs_end_like_undisturbed_ones",),
    "rewards/test_code_tests.py": ("test_the_network_of_the_machine_is_out_of_reach",),
    "rewards/test_reward_training.py": (
        "test_loss_and_gradient_are_those_of_pytorch", "test_what_is_trained_is_what_scores",
    ),
    "runs/test_forecast.py": ("test_a_run_tells_it_before_training_and_in_its_report",),
    "runs/test_revising.py": (
        "test_p_keep_is_the_product_of_steps_whatever_stands_in_the_batch", "test_revisions_come_with_their_faults",
        "test_what_cannot_be_read_stops_no_run",
    ),
    "sampling/test_beams.py": (
        "test_allowed_tokens_and_edges", "test_every_prompt_gets_what_it_gets_alone",
        "test_one_beam_that_stops_early_is_greedy", "test_text_in_text_out",
        "test_with_enough_beams_every_continuation_is_found",
    ),
    "sampling/test_continuations.py": (
        "TestWithoutReference::test_an_encoder_reads_the_prompt",
        "TestWithoutReference::test_chats_are_the_beginnings_of_answers",
        "TestWithoutReference::test_few_tokens_at_once_change_nothing", "test_pytorch_gives_the_same",
    ),
    "sampling/test_generate.py": (
        "test_caches_that_grow_change_nothing", "test_edges", "test_every_token_has_its_own_randomness",
        "test_half_precision", "test_samples_depend_on_seed_prompt_and_number_only",
        "test_the_repetition_penalty_looks_at_the_prompt_and_at_what_is_there",
    ),
    "sampling/test_refill.py": (
        "test_a_penalty_forgets_what_others_were_given", "test_caches_grow_and_shrink_and_change_nothing",
        "test_every_prompt_gets_what_it_gets_alone",
    ),
    "sampling/test_samplers.py": ("test_greedy_takes_the_largest_and_nucleus_zero_too",),
    "sampling/test_session.py": (
        "test_a_longer_text_for_an_encoder", "test_a_session_says_what_the_whole_text_says",
        "test_the_examples_of_the_page",
    ),
    "sampling/test_stops.py": ("test_an_answer_is_cut_before_the_first_stop", "test_settings_hand_stops_and_min_p_on"),
    "store/test_bucket.py": ("test_a_merge_from_a_bucket_to_a_bucket", "test_a_model_folder"),
    "store/test_given.py": ("test_the_sample_becomes_a_store",),
    "tpu_scripts/test_job.py": ("test_a_mesh_comes_together_again",),
    "tpu_scripts/test_preflight.py": (
        "test_a_check_that_hangs_on_one_host_ends_all", "test_hosts_that_differ_are_named", "test_two_processes_pass",
    ),
    "train/test_alike.py": ("test_an_objective_is_like_itself", "test_the_cosine_of_dpo_and_wrpo"),
    "train/test_alirector.py": (
        "test_a_corrector_that_is_its_own_alignment_model_learns_nothing_from_it",
        "test_a_decoder_learns_as_in_pytorch_though_prompts_differ", "test_an_encoder_decoder_learns_as_in_pytorch",
        "test_an_item_that_one_model_cuts_elsewhere_is_not_taught",
    ),
    "train/test_best_of.py": (
        "test_the_lowest_held_out_loss_of_the_last_states",
        "test_what_a_preemption_left_displaces_no_state_that_is_compared",
    ),
    "train/test_copying.py": (
        "test_the_loss_is_that_of_dense_logits", "test_what_is_written_is_the_best_token_of_dense_logits",
        "test_where_the_last_layer_looks",
    ),
    "train/test_fits.py": (
        "test_a_target_whose_positions_are_the_length_of_the_texts_is_trained",
        "test_prompts_that_leave_no_room_are_refused_before_anything_is_sampled",
    ),
    "train/test_fused_objectives.py": ("test_the_revisers_two_means_depend_on_no_split",),
    "train/test_given.py": (
        "test_a_companion_has_an_optimizer_of_its_own", "test_dropout_is_of_tokens_and_of_what_each_part_adds",
        "test_dropout_is_that_of_an_example_wherever_it_stands", "test_memory_is_made_every_few_steps_and_resumes",
        "test_padding_between_tokens_keeps_their_places", "test_training_with_dropout_resumes_bit_for_bit",
    ),
    "train/test_live_teachers.py": (
        "test_examples_are_those_of_the_store", "test_rows_are_those_of_the_store",
        "test_training_asks_for_a_batch_at_once_and_learns_the_same",
    ),
    "train/test_lora.py": (
        "test_a_plan_counts_adapters_and_frozen_weights", "test_accumulation_remat_and_rank_0",
        "test_adapters_that_are_refused", "test_every_adapter_that_may_be_trained_counts",
        "test_gradients_are_those_of_peft", "test_no_gradient_of_a_frozen_weight_is_computed",
        "test_peft_reads_what_is_written_and_the_merged_model_is_that", "test_the_reference_is_the_base",
        "test_training_changes_adapters_alone_and_resumes",
    ),
    "train/test_metrics.py": ("test_micro_batches_change_no_metric", "test_the_evaluation_counts_all_held_out_tokens"),
    "train/test_mktod.py": (
        "test_a_step_reads_what_a_plain_program_reads", "test_an_old_index_chooses_and_new_vectors_score",
        "test_answers_are_the_most_probable_tokens_and_read_no_negative_entity",
        "test_golden_classes_have_the_tokens_of_their_tags", "test_pretraining_prefers_the_entity_that_a_turn_holds",
        "test_the_marginal_likelihood_starts_when_it_is_told_to", "test_turns_with_few_entities_or_none",
        "test_who_learns_from_what", "test_without_tags_a_prefix_is_plain_fusion_in_decoder_bit_for_bit",
    ),
    "train/test_optimise.py": (
        "test_a_kill_during_an_evaluation_costs_no_step",
        "test_sigterm_before_an_evaluation_saves_and_leaves_it_for_later",
        "test_sigterm_during_the_last_evaluation_is_not_forgotten", "test_sigterm_while_the_last_checkpoint_is_written",
    ),
    "train/test_packing.py": (
        "test_packed_training_on_eight_devices_gives_the_metrics_of_plain_rows_on_one",
        "test_same_loss_metrics_and_gradient",
    ),
    "train/test_profuser.py": (
        "test_both_branches", "test_one_branch", "test_the_first_stage_learns_nothing_from_training_rows",
        "test_the_means_depend_on_no_split_and_on_no_padding",
    ),
    "train/test_shared_prompt.py": (
        "test_a_window_wider_than_prompt_and_answer_cuts_nothing",
        "test_padding_beyond_the_original_length_of_longrope_turns_nothing", "test_same_loss_and_gradient",
    ),
    "train/test_teachers.py": (
        "test_rows_are_the_dense_distributions", "test_texts_are_read_behind_bos_where_the_tokenizer_puts_it",
    ),
    "train/test_trackers.py": (
        "test_a_tracker_that_fails_ends_no_training", "test_each_line_of_metrics_has_its_time_and_the_report_a_table",
        "test_tensorboard_shows_each_step_once_after_a_kill", "test_wandb_is_told_each_metric_by_the_step_of_its_stage",
    ),
    "zoo/test_dialogues.py": ("test_the_second_answer_corrects_what_is_known_and_repeats_the_rest",),
    "zoo/test_models.py": (
        "test_judges_rank_as_the_manifest_says_and_as_transformers_does",
        "test_transformers_loads_the_folder_and_agrees",
    ),
}  # fmt: skip


def mark(items: Sequence[pytest.Item]) -> None:
    """Mark as slow what the tables leave out."""
    left_out = {f"{file}::{test}" for file, tests in LEFT_OUT.items() for test in tests}
    names = {f"tests/{name}" for name in (*KEPT, *left_out)}
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
