"""What `import xray_utils as xu` gives, for editors and for lazy_loader."""

from ._support.datasets import download_images as download_images
from ._support.datasets import use_images as use_images
from ._support.device import check_environment as check_environment
from ._support.paths import (
    data_dir as data_dir,
)
from ._support.paths import (
    default_size as default_size,
)
from ._support.paths import (
    external_dir as external_dir,
)
from ._support.paths import (
    is_sample as is_sample,
)
from ._support.paths import (
    outputs_dir as outputs_dir,
)
from ._support.paths import (
    results_dir as results_dir,
)
from ._support.runs import load_run as load_run
from ._support.style import save_figure as save_figure
from .audit import audit_images as audit_images
from .audit import label_conflicts as label_conflicts
from .comparison import (
    best_epochs as best_epochs,
)
from .comparison import (
    compare as compare,
)
from .comparison import (
    compare_with_original as compare_with_original,
)
from .comparison import (
    load_results as load_results,
)
from .comparison import (
    make_missing_runs as make_missing_runs,
)
from .comparison import (
    metrics_table as metrics_table,
)
from .comparison import (
    save_results as save_results,
)
from .comparison import (
    save_table as save_table,
)
from .comparison import (
    seed_table as seed_table,
)
from .constants import CLASSES as CLASSES
from .constants import NOTEBOOKS as NOTEBOOKS
from .figures import plot_comparison as plot_comparison
from .figures import plot_confusion_matrix as plot_confusion_matrix
from .figures import plot_history as plot_history
from .figures import plot_roc as plot_roc
from .figures_of_data import plot_class_balance as plot_class_balance
from .figures_of_data import plot_colour as plot_colour
from .figures_of_data import plot_examples as plot_examples
from .figures_of_data import plot_images_per_patient as plot_images_per_patient
from .figures_of_data import plot_mean_images as plot_mean_images
from .figures_of_data import plot_mirroring as plot_mirroring
from .figures_of_data import plot_patches as plot_patches
from .figures_of_data import plot_preparation as plot_preparation
from .figures_of_data import plot_sizes as plot_sizes
from .figures_of_data import plot_split as plot_split
from .images import (
    credit_line as credit_line,
)
from .images import (
    describe_images as describe_images,
)
from .images import (
    find_images as find_images,
)
from .images import (
    read_image as read_image,
)
from .images import (
    resize as resize,
)
from .lab.calibration import (
    apply_temperature as apply_temperature,
)
from .lab.calibration import (
    calibration_error as calibration_error,
)
from .lab.calibration import (
    fit_temperature as fit_temperature,
)
from .lab.diagrams import plot_network as plot_network
from .lab.diagrams import plot_residual_block as plot_residual_block
from .lab.external import (
    abstain as abstain,
)
from .lab.external import (
    add_controls as add_controls,
)
from .lab.external import (
    controls_table as controls_table,
)
from .lab.external import (
    covid_auc as covid_auc,
)
from .lab.external import (
    covid_vs_normal as covid_vs_normal,
)
from .lab.external import (
    features as features,
)
from .lab.external import (
    load_external as load_external,
)
from .lab.external import (
    pneumonia_scores as pneumonia_scores,
)
from .lab.external import (
    risk_coverage as risk_coverage,
)
from .lab.external import (
    shared_sources as shared_sources,
)
from .lab.external import (
    uncertainty as uncertainty,
)
from .lab.external import (
    within_sources as within_sources,
)
from .lab.figures import (
    plot_classification as plot_classification,
)
from .lab.figures import (
    plot_controls as plot_controls,
)
from .lab.figures import (
    plot_differences as plot_differences,
)
from .lab.figures import (
    plot_experiments as plot_experiments,
)
from .lab.figures import (
    plot_internal_external as plot_internal_external,
)
from .lab.figures import (
    plot_reliability as plot_reliability,
)
from .lab.figures import (
    plot_risk_coverage as plot_risk_coverage,
)
from .lab.figures import (
    plot_saliency as plot_saliency,
)
from .lab.figures import (
    plot_seeds as plot_seeds,
)
from .lab.lungs import crop_lungs as crop_lungs
from .lab.lungs import equalise as equalise
from .lab.lungs import lung_box as lung_box
from .lab.lungs import lung_fields as lung_fields
from .lab.saliency import (
    attention_rollout as attention_rollout,
)
from .lab.saliency import (
    grad_cam as grad_cam,
)
from .lab.saliency import (
    saliency_maps as saliency_maps,
)
from .lab.saliency import (
    sanity_check as sanity_check,
)
from .lab.saliency import (
    share_in_lungs as share_in_lungs,
)
from .lab.shortcuts import (
    CHANGES as CHANGES,
)
from .lab.shortcuts import (
    change_data as change_data,
)
from .lab.shortcuts import (
    change_split as change_split,
)
from .lab.shortcuts import (
    cross_validate as cross_validate,
)
from .lab.shortcuts import (
    plant_marker as plant_marker,
)
from .lab.shortcuts import (
    shortcut_baselines as shortcut_baselines,
)
from .lab.shortcuts import (
    shortcut_table as shortcut_table,
)
from .lab.shortcuts import (
    summarise as summarise,
)
from .lab.shortcuts import (
    verdict as verdict,
)
from .lab.use import classify as classify
from .lab.use import export_model as export_model
from .lab.use import image_form as image_form
from .metrics import (
    compare_pairs as compare_pairs,
)
from .metrics import (
    compare_two as compare_two,
)
from .metrics import (
    compute_metrics as compute_metrics,
)
from .metrics import (
    grouped_mean as grouped_mean,
)
from .metrics import (
    report as report,
)
from .metrics import (
    with_interval as with_interval,
)
from .models import (
    VIT_NAME as VIT_NAME,
)
from .models import (
    baseline_cnn as baseline_cnn,
)
from .models import (
    count_parameters as count_parameters,
)
from .models import (
    resnet18 as resnet18,
)
from .models import (
    vit as vit,
)
from .models import (
    vit_weights as vit_weights,
)
from .prepared import load_data as load_data
from .prepared import prepare as prepare
from .splits import count_split as count_split
from .splits import split_images as split_images
from .training import estimate_time as estimate_time
from .training import fit as fit
from .training import predict as predict
