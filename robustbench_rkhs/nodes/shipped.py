"""The names of the recipes in models/ that come with the package: nobody else may submit under them.

A recipe of your own lies in a models/ folder, too, in a clone of the repository even in the same one, and is none of these.
"""

RECIPES = frozenset(
    """
    cifar100_certified cifar100_sandwich cifar10_aol cifar10_bro cifar10_liresnet cifar10_orthogonal cifar10_plain cifar10_radius
    cifar10_sandwich cifar10_sll cifar10_smoothed digits_adaptive digits_cc_ibp digits_consistency digits_conv digits_crown_ibp
    digits_gloro digits_ibp digits_mlp digits_mma digits_mtl_ibp digits_regularized digits_sabr digits_sandwich digits_smoothed
    digits_trades digits_two_stage mnist_300_function_norm mnist_300_net_function_norm mnist_features mnist_smoothed protein_1_1
    protein_1_1_gradient rkhs_small_adversarial_perturbation rkhs_small_combined rkhs_small_gradient rkhs_small_loss_gradient
    rkhs_small_mnist_1000_stability rkhs_small_mnist_1000_tangent rkhs_small_mnist_300_stability rkhs_small_mnist_300_tangent
    rkhs_small_pgd rkhs_small_resnet_weight_decay rkhs_small_spectral_norm rkhs_small_virtual_adversarial rkhs_small_weight_decay
    robust_vgg robust_vgg_published robust_vgg_small square_wave_mlp square_wave_sandwich tiny_imagenet20_sandwich
    tiny_imagenet20_vgg
    """.split()
)
