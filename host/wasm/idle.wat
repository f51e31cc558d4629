;; A policy with every hook that decides nothing: what remains is the way into a plugin and back.
;;
;; Arguments are put from ARGUMENTS on, and every call begins there anew. Nobody writes below, so
;; that answers can be made of what is there, which is zeros: for each variant of the contract, its
;; first case. Only the list that is answered with stands at 0, as its address and its length.
(module
  (memory (export "memory") 640)
  (global $next (mut i32) (i32.const 8388608)) ;; ARGUMENTS

  (func (export "cabi_realloc") (param i32 i32 i32) (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
    (global.set $next (i32.add (local.get $at) (local.get $size)))
    (local.get $at))

  ;; A list of so many zeros.
  (func $zeros (param $length i32) (result i32)
    (global.set $next (i32.const 8388608))
    (i32.store (i32.const 0) (i32.const 64))
    (i32.store (i32.const 4) (local.get $length))
    (i32.const 0))

  ;; Nothing that is not a list: `ok`, or a record of empty lists.
  (func $nothing (result i32)
    (global.set $next (i32.const 8388608))
    (i32.const 16))

  ;; The topic and the partition, then the rows of the batch.
  (func (export "halley:policy/filter-columns@VERSION#filter")
    (param i32 i32 i32 i32) (param $rows i32) (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
    (call $zeros (local.get $rows)))

  (func (export "halley:policy/grouping-columns@VERSION#regroup")
    (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
    (call $nothing))

  ;; Too many parameters: they are in memory. After the source (16 bytes) and the message (72), the
  ;; list of the absent.
  (func (export "halley:policy/offline@VERSION#decide") (param $parameters i32) (result i32)
    (call $zeros (i32.load offset=92 (local.get $parameters))))

  (func (export "halley:policy/lifecycle@VERSION#init") (param i32 i32) (result i32)
    (call $nothing))

  ;; Gateways ask in columns.
  (func (export "halley:policy/filter@VERSION#filter") (param i32 i32 i32 i32 i32) (result i32)
    (unreachable))
  (func (export "halley:policy/grouping@VERSION#regroup") (param i32 i32 i32 i32 i32 i32) (result i32)
    (unreachable)))
