"""Allow-lists of the elements and attributes of a drawing.

Scripts, event handlers, animation, bitmaps, metadata and titles are absent, and so is everything
that a future editor invents.
"""

_SHAPES = "path rect circle ellipse line polyline polygon text use"
_TEXTS = "text tspan textPath"
_DEFINITIONS = "linearGradient radialGradient clipPath mask pattern filter marker symbol"
_FILTER_PRIMITIVES = """
    feBlend feColorMatrix feComponentTransfer feComposite feConvolveMatrix feDiffuseLighting
    feDisplacementMap feDistantLight feDropShadow feFlood feFuncA feFuncB feFuncG feFuncR
    feGaussianBlur feImage feMerge feMergeNode feMorphology feOffset fePointLight
    feSpecularLighting feSpotLight feTile feTurbulence
"""
_GEOMETRY = """
    x y width height rx ry cx cy r fx fy fr x1 y1 x2 y2 dx dy rotate textLength lengthAdjust
    startOffset method spacing side refX refY markerWidth markerHeight markerUnits orient viewBox
    preserveAspectRatio gradientUnits gradientTransform spreadMethod clipPathUnits maskUnits
    maskContentUnits mask-type patternUnits patternContentUnits patternTransform filterUnits
    primitiveUnits offset in in2 result type values mode operator k1 k2 k3 k4
    stdDeviation radius order divisor bias targetX targetY kernelMatrix kernelUnitLength
    preserveAlpha edgeMode tableValues slope intercept amplitude exponent surfaceScale
    diffuseConstant specularConstant specularExponent limitingConeAngle azimuth elevation z
    pointsAtX pointsAtY pointsAtZ baseFrequency numOctaves seed stitchTiles scale xChannelSelector
    yChannelSelector transform transform-origin transform-box pathLength xml:space
"""
_PRESENTATION = """
    color display visibility overflow opacity fill fill-opacity fill-rule stroke stroke-width
    stroke-opacity stroke-linecap stroke-linejoin stroke-miterlimit stroke-dasharray
    stroke-dashoffset paint-order shape-rendering clip-path clip-rule mask filter marker-start
    marker-mid marker-end stop-color stop-opacity flood-color flood-opacity lighting-color
    color-interpolation color-interpolation-filters font-family font-size font-size-adjust
    font-stretch font-style font-variant font-weight text-anchor text-decoration dominant-baseline
    alignment-baseline baseline-shift letter-spacing word-spacing writing-mode direction
    unicode-bidi vector-effect
"""

SHAPES = frozenset(_SHAPES.split())
TEXTS = frozenset(_TEXTS.split())
DEFINITIONS = frozenset(_DEFINITIONS.split())
GROUPS = frozenset(("g", "defs"))
ELEMENTS = SHAPES | TEXTS | DEFINITIONS | GROUPS | {"svg", "stop"} | set(_FILTER_PRIMITIVES.split())
PRESENTATION = frozenset(_PRESENTATION.split())
OUTLINES = frozenset(("d", "points"))  # long values with a grammar of their own
# CSS properties without an attribute. The background belongs to the root.
STYLE_ONLY = ("mix-blend-mode", "isolation", "background-color")

_ORDERED_NAMES = (
    *("id", "href"),
    *_GEOMETRY.split(),
    *_PRESENTATION.split(),
    *("style", "points", "d"),
)
ATTRIBUTE_ORDER = {name: position for position, name in enumerate(_ORDERED_NAMES)}
