"""What every transport must hold to: one suite of checks, written against the contracts in `shardfeed_wire.transport`.

To hold a transport of your own to them, register it and run each check of `CHECKS` with a callable that
gives an endpoint which can be bound, another one at each call, and which no other check uses::

    from tests.wire.conformance import CHECKS, run

    register("carrier", Carrier)

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_conformance(check):
        run(check, lambda: "carrier://127.0.0.1:0")

``pytest``, ``psutil`` and this folder's four files that begin with ``conformance`` are all it takes. A third argument
of `run` makes the event loop, ``uvloop.new_event_loop`` for the server's. Checks use real connections
and deadlines; none sleeps and hopes.
"""

from __future__ import annotations

from tests.wire.conformance_arena import Arena, Check, run
from tests.wire.conformance_delivery import (
    a_cancelled_receive_loses_nothing,
    a_cancelled_send_arrives_whole_or_not_at_all,
    a_channel_receives_while_its_send_is_blocked,
    a_listener_that_stops_blocks_the_channel_s_send,
    a_message_of_300_mb_arrives,
    a_reader_that_stops_blocks_its_sender_alone_and_memory_is_bounded,
    chunks_are_free_again_when_send_returns,
    messages_arrive_whole_and_in_order_both_ways,
    messages_of_any_size_arrive,
    sixty_four_peers_get_their_own_messages,
    thousands_of_small_messages_arrive,
)
from tests.wire.conformance_ends import (
    a_cancelled_connect_leaves_nothing_behind,
    a_channel_says_that_the_listener_is_gone_after_what_arrived,
    a_close_ends_what_is_under_way,
    a_frame_over_the_channel_s_limit_ends_it,
    a_frame_over_the_listener_s_limit_ends_that_channel_alone,
    a_listener_s_send_under_way_ends_when_the_channel_goes,
    a_listener_says_that_a_channel_is_gone,
    a_listener_that_closes_with_patience_sends_what_is_under_way,
    a_new_channel_reaches_a_listener_that_came_back,
    a_receive_under_way_ends_when_the_listener_goes,
    a_send_under_way_ends_when_the_listener_goes,
    an_endpoint_in_use_cannot_be_bound_again,
    no_two_peers_have_one_identity_whatever_listener_they_came_to,
    other_peers_go_on_when_one_goes_in_the_middle_of_a_message,
    to_connect_where_nobody_listens_is_an_error,
    too_many_frames_for_the_channel_end_it,
    too_many_frames_for_the_listener_never_arrive,
    what_is_used_after_its_close_says_so,
)

__all__ = ["CHECKS", "Arena", "Check", "run"]

CHECKS: list[Check] = [
    messages_arrive_whole_and_in_order_both_ways,
    messages_of_any_size_arrive,
    a_message_of_300_mb_arrives,
    thousands_of_small_messages_arrive,
    sixty_four_peers_get_their_own_messages,
    a_cancelled_receive_loses_nothing,
    a_cancelled_send_arrives_whole_or_not_at_all,
    chunks_are_free_again_when_send_returns,
    a_reader_that_stops_blocks_its_sender_alone_and_memory_is_bounded,
    a_listener_that_stops_blocks_the_channel_s_send,
    a_channel_receives_while_its_send_is_blocked,
    a_channel_says_that_the_listener_is_gone_after_what_arrived,
    a_receive_under_way_ends_when_the_listener_goes,
    a_send_under_way_ends_when_the_listener_goes,
    a_listener_says_that_a_channel_is_gone,
    a_listener_s_send_under_way_ends_when_the_channel_goes,
    other_peers_go_on_when_one_goes_in_the_middle_of_a_message,
    a_new_channel_reaches_a_listener_that_came_back,
    to_connect_where_nobody_listens_is_an_error,
    an_endpoint_in_use_cannot_be_bound_again,
    no_two_peers_have_one_identity_whatever_listener_they_came_to,
    what_is_used_after_its_close_says_so,
    a_close_ends_what_is_under_way,
    a_listener_that_closes_with_patience_sends_what_is_under_way,
    a_cancelled_connect_leaves_nothing_behind,
    a_frame_over_the_listener_s_limit_ends_that_channel_alone,
    a_frame_over_the_channel_s_limit_ends_it,
    too_many_frames_for_the_channel_end_it,
    too_many_frames_for_the_listener_never_arrive,
]
