"""Write MuJoCo models of the snake, and of the quadruped in its mazes, with sizes as arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Wall(NamedTuple):
    """A box from the floor to 1 m, in metres."""

    x_min: float
    x_max: float
    y_min: float
    y_max: float


def snake_xml(links: int = 3, length: float = 1.0, gear: float = 150.0) -> str:
    """Return a chain of capsules in a fluid: the body of rllab's swimmer, with Gymnasium's gear.

    Args:
        links: Number of capsules.
        length: Length of each, in metres.
        gear: Torque of a motor at action 1, in N m.
    """
    motors = "".join(
        f'<motor joint="bend{i}" gear="{gear}" ctrllimited="true" ctrlrange="-1 1"/>' for i in range(1, links)
    )
    return f"""<mujoco model="snake">
      <compiler angle="degree" inertiafromgeom="true"/>
      <option timestep="0.01" integrator="RK4" density="4000" viscosity="0.1" gravity="0 0 0"/>
      <default><joint armature="0.1"/><geom density="1000" contype="0" conaffinity="0" rgba=".8 .4 .1 1"/></default>
      <worldbody>
        <light pos="0 0 5"/>
        <geom name="floor" type="plane" size="40 40 0.1" pos="0 0 -0.1" rgba=".8 .9 1 1"/>
        {_link(0, links, length)}
      </worldbody>
      <actuator>{motors}</actuator>
    </mujoco>"""


def _link(i: int, links: int, length: float) -> str:
    """Return link `i` and all links attached to it."""
    if i == 0:
        joints = "".join(
            f'<joint name="{name}" type="{kind}" axis="{axis}"/>'
            for name, kind, axis in (
                ("x", "slide", "1 0 0"),
                ("y", "slide", "0 1 0"),
                ("yaw", "hinge", "0 0 1"),
            )
        )
        position = f"{links * length / 2} 0 0"
    else:
        joints = f'<joint name="bend{i}" type="hinge" axis="0 0 1" limited="true" range="-100 100"/>'
        position = f"{-length} 0 0"
    child = _link(i + 1, links, length) if i < links - 1 else ""
    geom = f'<geom name="link{i}" type="capsule" fromto="0 0 0 {-length} 0 0" size="0.1"/>'
    return f'<body name="body{i}" pos="{position}">{joints}{geom}{child}</body>'


_LEGS = ((1, 1), (-1, 1), (-1, -1), (1, -1))


def quadruped_xml(walls: Sequence[Wall] = (), gear: float = 75.0) -> str:
    """Return rllab's ant among walls: a sphere on four legs of capsules, without self-collision.

    It touches floor and walls.

    Args:
        walls: Boxes 1 m high.
        gear: Torque of a motor at action 1, in N m.
    """
    legs = "".join(_leg(k, *direction) for k, direction in enumerate(_LEGS))
    motors = "".join(
        f'<motor joint="{part}{k}" gear="{gear}" ctrllimited="true" ctrlrange="-1 1"/>'
        for k in range(len(_LEGS))
        for part in ("hip", "knee")
    )
    return f"""<mujoco model="quadruped">
      <compiler angle="degree" inertiafromgeom="true"/>
      <option timestep="0.01" integrator="RK4"/>
      <default>
        <joint limited="true" armature="1" damping="1"/>
        <geom condim="3" contype="1" conaffinity="0" margin="0.01" friction="1 0.5 0.5" density="5" rgba=".8 .6 .4 1"/>
      </default>
      <worldbody>
        <light pos="0 0 20"/>
        <geom name="floor" type="plane" size="80 80 1" conaffinity="1" rgba=".8 .9 .8 1"/>
        {"".join(_wall(i, wall) for i, wall in enumerate(walls))}
        <body name="torso" pos="0 0 0.55">
          <freejoint name="root"/>
          <geom name="torso" type="sphere" size="0.25"/>
          {legs}
        </body>
      </worldbody>
      <actuator>{motors}</actuator>
    </mujoco>"""


def _leg(k: int, x: int, y: int) -> str:
    """Return leg `k`, on the diagonal (x, y).

    It has a hip bone, a thigh that swings by 30 degrees, and a shin that bends by 30 to 70.
    """
    near, far = f"0 0 0 {0.2 * x} {0.2 * y} 0", f"0 0 0 {0.4 * x} {0.4 * y} 0"
    place = f"{0.2 * x} {0.2 * y} 0"
    return f"""<geom name="hipbone{k}" type="capsule" size="0.08" fromto="{near}"/>
      <body name="upper{k}" pos="{place}">
        <joint name="hip{k}" type="hinge" axis="0 0 1" range="-30 30"/>
        <geom name="thigh{k}" type="capsule" size="0.08" fromto="{near}"/>
        <body name="lower{k}" pos="{place}">
          <joint name="knee{k}" type="hinge" axis="{-y} {x} 0" range="30 70"/>
          <geom name="shin{k}" type="capsule" size="0.08" fromto="{far}"/>
        </body>
      </body>"""


def _wall(i: int, wall: Wall) -> str:
    center = f"{(wall.x_min + wall.x_max) / 2} {(wall.y_min + wall.y_max) / 2} 0.5"
    half = f"{(wall.x_max - wall.x_min) / 2} {(wall.y_max - wall.y_min) / 2} 0.5"
    return (
        f'<geom name="wall{i}" type="box" pos="{center}" size="{half}" contype="1" conaffinity="1" '
        'rgba=".5 .5 .5 1"/>'
    )


THICKNESS = 0.5
"""Thickness of walls, in metres."""


def enclosure(x_min: float, x_max: float, y_min: float, y_max: float) -> list[Wall]:
    """Return four walls around a free rectangle."""
    t = THICKNESS
    return [
        Wall(x_min - t, x_min, y_min - t, y_max + t),
        Wall(x_max, x_max + t, y_min - t, y_max + t),
        Wall(x_min - t, x_max + t, y_max, y_max + t),
        Wall(x_min - t, x_max + t, y_min - t, y_min),
    ]


def maze() -> list[Wall]:
    """Return two passages around a block; a barrier closes the upper one at its far end."""
    return [*enclosure(-2.5, 12.5, -4.5, 4.5), Wall(2.5, 7.5, -1.5, 1.5), Wall(7.0, 7.5, 1.5, 4.5)]


def hallway(width: float) -> list[Wall]:
    """Return a straight corridor along x, 120 m long."""
    return enclosure(-60.0, 60.0, -width / 2, width / 2)


def u_shape() -> list[Wall]:
    """Return a corridor 3 m wide: east along y = 0, north at x = 6, west along y = 6."""
    return [*enclosure(-1.5, 7.5, -1.5, 7.5), Wall(-1.5, 4.5, 1.5, 4.5)]
