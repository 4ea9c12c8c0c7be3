"""Helpers of the chest X-ray course, in the order the data goes. `import xray_utils as xu` is all it takes.

Every function raises ValueError for an argument that will not do: the words begin with its name and say what would.
What else one raises stands in its docstring.
A module is imported when one of its names is first used: torch alone takes seconds, and not every page needs it.
"""

import importlib
import os

if "OMP_WAIT_POLICY" not in os.environ:  # read when torch is imported: a thread that waits soon sleeps. The usual
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # 300,000 turns slow two trainings on two cores down ten-fold

_MODULES = {
    "data": """
        CLASSES audit_images count_split credit_line data_dir describe_images download_images external_dir find_images
        default_size is_sample load_data outputs_dir prepare read_image resize split_images use_images
    """,
    "controls": "add_controls controls_table",
    "diagrams": "plot_network plot_residual_block",
    "evaluation": """
        NOTEBOOKS apply_temperature beside_original best_epochs calibration_error compare compare_pairs
        compare_two compute_metrics fit_temperature load_results make_missing_runs mean_with_groups
        metrics_table report results_dir save_results save_table seed_table with_interval
    """,
    "explain": """
        CHANGES change_data change_split guess judge load_external overview plant_marker try_to_break verdict
    """,
    "lungs": "lung_fields",
    "maps": "attention_rollout grad_cam sanity_check share_in_lungs where_it_looks",
    "models": "VIT_NAME baseline_cnn count_parameters resnet18 vit vit_weights",
    "plotting": """
        plot_answer plot_class_balance plot_colour plot_comparison plot_confusion_matrix plot_controls
        plot_differences plot_examples plot_experiments plot_history plot_home_and_away plot_images_per_patient
        plot_maps plot_mean_images plot_mirroring plot_patches plot_preparation plot_reliability plot_risk_coverage
        plot_roc plot_seeds plot_sizes plot_split save_figure
    """,
    "robust": """
        against_normal covid_area crop_lungs doubts equalise features ill_scores lung_box refuse risk_coverage
        shared_sources within_sources
    """,
    "training": "check_environment estimate_time fit load_run predict",
    "use": "classify export_model image_form",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}
__all__ = list(_HOME)


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, getattr(importlib.import_module(f".{_HOME[name]}", __name__), name))


def __dir__():
    return sorted([*globals(), *_HOME])
