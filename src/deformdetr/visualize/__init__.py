"""Drawing of boxes and masks on images, of sampling points, and of training curves."""

from deformdetr.visualize._boxes import Color, class_color, draw_boxes, draw_comparison
from deformdetr.visualize._evaluation import plot_confusion, plot_precision_recall
from deformdetr.visualize._fonts import check_font
from deformdetr.visualize._images import check_picture, displayable, save_image, tile_pictures
from deformdetr.visualize._panoptic import draw_panoptic
from deformdetr.visualize._plots import plot_curves, plot_sampling_layers, plot_sampling_points
from deformdetr.visualize._queries import draw_proposals, draw_refinement

__all__ = [
    "Color",
    "check_font",
    "check_picture",
    "class_color",
    "displayable",
    "draw_boxes",
    "draw_comparison",
    "draw_panoptic",
    "draw_proposals",
    "draw_refinement",
    "plot_confusion",
    "plot_curves",
    "plot_precision_recall",
    "plot_sampling_layers",
    "plot_sampling_points",
    "save_image",
    "tile_pictures",
]
