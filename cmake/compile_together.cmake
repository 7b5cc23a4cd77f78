# harp_compile_together(TARGET N): compiles N sources of the target at a time, unless HARP_UNITY_BUILD is off.
#
# For targets in which the compiler spends most of its time on the same headers and templates. The sources must still compile
# alone: scripts/run_clang_tidy.py reads each by itself.
function(harp_compile_together target n)
    if(HARP_UNITY_BUILD)
        set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE ${n})
    endif()
endfunction()
