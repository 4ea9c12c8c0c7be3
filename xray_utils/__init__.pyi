"""What `import xray_utils as xu` gives, for editors and for lazy_loader."""

from ._support.datasets import download_images as download_images, use_images as use_images
from ._support.device import check_environment as check_environment
from ._support.paths import (
    data_dir as data_dir,
    default_size as default_size,
    external_dir as external_dir,
    is_sample as is_sample,
    outputs_dir as outputs_dir,
    results_dir as results_dir,
)
from ._support.runs import load_run as load_run
from ._support.style import save_figure as save_figure
from .audit import audit_images as audit_images, label_conflicts as label_conflicts
from .comparison import (
    best_epochs as best_epochs,
    compare as compare,
    compare_with_original as compare_with_original,
    load_results as load_results,
    make_missing_runs as make_missing_runs,
    metrics_table as metrics_table,
    save_results as save_results,
    save_table as save_table,
    seed_table as seed_table,
)
from .constants import CLASSES as CLASSES, NOTEBOOKS as NOTEBOOKS
from .figures import (
    plot_comparison as plot_comparison,
    plot_confusion_matrix as plot_confusion_matrix,
    plot_history as plot_history,
    plot_roc as plot_roc,
)
from .figures_of_data import (
    plot_class_balance as plot_class_balance,
    plot_colour as plot_colour,
    plot_examples as plot_examples,
    plot_images_per_patient as plot_images_per_patient,
    plot_mean_images as plot_mean_images,
    plot_mirroring as plot_mirroring,
    plot_patches as plot_patches,
    plot_preparation as plot_preparation,
    plot_sizes as plot_sizes,
    plot_split as plot_split,
)
from .images import (
    credit_line as credit_line,
    describe_images as describe_images,
    find_images as find_images,
    read_image as read_image,
    resize as resize,
)
from .lab.calibration import (
    apply_temperature as apply_temperature,
    calibration_error as calibration_error,
    fit_temperature as fit_temperature,
)
from .lab.diagrams import plot_network as plot_network, plot_residual_block as plot_residual_block
from .lab.external import (
    abstain as abstain,
    add_controls as add_controls,
    controls_table as controls_table,
    covid_auc as covid_auc,
    covid_vs_normal as covid_vs_normal,
    features as features,
    load_external as load_external,
    pneumonia_scores as pneumonia_scores,
    risk_coverage as risk_coverage,
    shared_sources as shared_sources,
    uncertainty as uncertainty,
    within_sources as within_sources,
)
from .lab.figures import (
    plot_classification as plot_classification,
    plot_controls as plot_controls,
    plot_differences as plot_differences,
    plot_experiments as plot_experiments,
    plot_internal_external as plot_internal_external,
    plot_reliability as plot_reliability,
    plot_risk_coverage as plot_risk_coverage,
    plot_saliency as plot_saliency,
    plot_seeds as plot_seeds,
)
from .lab.lungs import crop_lungs as crop_lungs, equalise as equalise, lung_box as lung_box, lung_fields as lung_fields
from .lab.saliency import (
    attention_rollout as attention_rollout,
    grad_cam as grad_cam,
    saliency_maps as saliency_maps,
    sanity_check as sanity_check,
    share_in_lungs as share_in_lungs,
)
from .lab.shortcuts import (
    CHANGES as CHANGES,
    change_data as change_data,
    change_split as change_split,
    cross_validate as cross_validate,
    plant_marker as plant_marker,
    shortcut_baselines as shortcut_baselines,
    shortcut_table as shortcut_table,
    summarise as summarise,
    verdict as verdict,
)
from .lab.use import classify as classify, export_model as export_model, image_form as image_form
from .metrics import (
    compare_pairs as compare_pairs,
    compare_two as compare_two,
    compute_metrics as compute_metrics,
    grouped_mean as grouped_mean,
    report as report,
    with_interval as with_interval,
)
from .models import (
    VIT_NAME as VIT_NAME,
    baseline_cnn as baseline_cnn,
    count_parameters as count_parameters,
    resnet18 as resnet18,
    vit as vit,
    vit_weights as vit_weights,
)
from .prepared import load_data as load_data, prepare as prepare
from .splits import count_split as count_split, split_images as split_images
from .training import estimate_time as estimate_time, fit as fit, predict as predict
