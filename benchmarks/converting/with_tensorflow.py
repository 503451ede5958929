"""Converts a Keras network of random weights to int8, in an environment that has TensorFlow.

    python with_tensorflow.py METHOD NETWORK PIXELS OUT

METHOD is `converter` (TFLiteConverter quantises while it converts) or `quantizer` (it converts to float32, and
ai-edge-quantizer quantises the file). NETWORK is `small` or a name of keras.applications.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf

_SEED = 7
_SAMPLES = 2


def network(name: str, pixels: int) -> tf.keras.Model:
    tf.keras.utils.set_random_seed(_SEED)
    if name != "small":
        return normalised(getattr(tf.keras.applications, name)(weights=None, input_shape=(pixels, pixels, 3)), pixels)
    layers = tf.keras.layers
    source = layers.Input((pixels, pixels, 3))
    stem = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu6")(source)
    deep = layers.DepthwiseConv2D(3, padding="same", activation="relu")(stem)
    added = layers.Add()([stem, layers.Conv2D(16, 1)(deep)])
    joined = layers.Concatenate()([added, layers.Activation("sigmoid")(layers.Conv2D(8, 3, padding="same")(added))])
    return tf.keras.Model(source, layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(joined)))


def normalised(model: tf.keras.Model, pixels: int) -> tf.keras.Model:
    """The network with the statistics of our samples in its batch normalisations; without them activations fade to 0."""
    for layer in model.layers:
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(np.concatenate(samples(pixels)), training=True)
    return model


def samples(pixels: int) -> list[np.ndarray]:
    draw = np.random.default_rng(_SEED)
    return [draw.random((1, pixels, pixels, 3), np.float32) for _ in range(_SAMPLES)]


def _converter(model: tf.keras.Model, pixels: int) -> tf.lite.TFLiteConverter:
    """Of the network with a batch of one: the Edge TPU compiler takes no other."""
    source = tf.keras.layers.Input((pixels, pixels, 3), batch_size=1)
    return tf.lite.TFLiteConverter.from_keras_model(tf.keras.Model(source, model(source)))


def by_converter(model: tf.keras.Model, pixels: int) -> bytes:
    converter = _converter(model, pixels)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image] for image in samples(pixels))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return bytes(converter.convert())


def by_quantizer(model: tf.keras.Model, pixels: int) -> bytes:
    from ai_edge_quantizer import quantizer, recipe

    with tempfile.TemporaryDirectory() as folder:
        plain, made = Path(folder) / "float32.tflite", Path(folder) / "int8.tflite"
        plain.write_bytes(_converter(model, pixels).convert())
        tool = quantizer.Quantizer(str(plain))
        tool.load_quantization_recipe(recipe.static_wi8_ai8())
        # Files without a signature have one for the quantizer, whose inputs are named like the tensors.
        ((name, signature),) = tf.lite.Interpreter(str(plain)).get_signature_list().items()
        found = tool.calibrate({name: [{signature["inputs"][0]: image} for image in samples(pixels)]})
        tool.quantize(calibration_result=found).export_model(str(made))
        return made.read_bytes()


def main() -> None:
    method, name, pixels, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    convert = {"converter": by_converter, "quantizer": by_quantizer}[method]
    out.write_bytes(convert(network(name, pixels), pixels))


if __name__ == "__main__":
    main()
