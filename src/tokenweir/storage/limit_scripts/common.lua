-- What all scripts of the shared store of limits begin with: how a bucket is kept, and the arithmetic of limits/gcra.py in a language of doubles.
--
-- Exactness. Lua counts in doubles, which hold every whole number up to 2^53. So nothing here is ever larger. A level is not kept as one number in
-- units x period, as in Python, but as whole units (`used`) and a rest (`num`, in units / period, below `period`). What leaks is refill x passed /
-- period; the product is never made, see `times_over`. Numbers come in and go out as 64-bit integers, never as text, which Lua would round.
--
-- KEYS[1] is the prefix of all keys of this life of the server, KEYS[2] the channel on which room is told. ARGV[1] is the time in microseconds; empty
-- means the server's clock, which all processes share. ARGV[2] is the owner of the holds, ARGV[3] the number of its connection.

local SAFE = 9007199254740991
local COUNTER, LEVEL, GAUGE = 0, 1, 2
local KEPT_S, IDLE_S, FOREVER_S = 172800, 600, 34560000
local WAITED_S = 60 -- for so long after a refusal it is told when room is given back; who waits asks again sooner than that
local STATE = '<BBi8i8i8i8i8i8i8'

local call, unpack_from, fmod, floor = redis.call, struct.unpack, math.fmod, math.floor
local prefix, channel, owner, epoch = KEYS[1], KEYS[2], ARGV[2], ARGV[3]
local now
if ARGV[1] == '' then
  local time = call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
else
  now = tonumber(ARGV[1])
end

-- A connection that was given up may still have commands under way; they must not be done after a later connection of the same owner has begun.
-- And where the owner is not known, the server has forgotten everything: the owner tells it again what it holds.
local function fenced(found)
  if found ~= epoch then
    return redis.error_reply('FENCED another connection has taken the place of this one, or everything was forgotten')
  end
end

local function add(a, b)
  local sum = a + b
  if sum > SAFE then return SAFE elseif sum < -SAFE then return -SAFE end
  return sum
end

-- x * y / p as quotient and rest, for 0 <= x < p <= 2^51 and 0 <= y < 2^53: by doubling, as one multiplies on paper, with digits of `base` instead of
-- two where p leaves room for that. In each step both terms are below base * p, and base is chosen so that twice that is at most 2^53.
local function times_over(x, y, p)
  local product = x * y
  if product <= SAFE then
    local rest = fmod(product, p)
    return (product - rest) / p, rest
  end
  local base, place = 2, 1
  while base * 4 * p <= SAFE do base = base * 2 end
  while place * base <= y do place = place * base end
  local quotient, rest = 0, 0
  while place >= 1 do
    local digit = floor(y / place)
    y = y - digit * place
    local sum = rest * base + digit * x
    rest = fmod(sum, p)
    quotient = quotient * base + (sum - rest) / p
    place = place / base
  end
  return quotient, rest
end

-- gcra.leak
local function leak(state)
  local passed = now - state.at
  if passed < 0 then
    if passed < -state.period or (state.used == 0 and state.num == 0) then
      state.at, state.moved = now, true
    end
    return
  end
  state.at = now
  if state.refill <= 0 or (state.used == 0 and state.num == 0) then return end
  local part = fmod(passed, state.period)
  local whole = (passed - part) / state.period * state.refill
  if whole > state.used then
    state.used, state.num = 0, 0
    return
  end
  local quotient, rest = times_over(part, state.refill, state.period)
  local used, num = state.used - whole - quotient, state.num - rest
  if num < 0 then used, num = used - 1, num + state.period end
  if used < 0 then used, num = 0, 0 end
  state.used, state.num = used, num
end

-- gcra.rescale, after the amount or the period of a limit was changed
local function retune(state, bucket)
  if state.refill == bucket.refill and state.period == bucket.period then return end
  local num, rest = times_over(state.num, bucket.period, state.period)
  if rest > 0 then num = num + 1 end
  if num >= bucket.period then state.used, num = add(state.used, 1), 0 end
  state.num, state.refill, state.period, state.moved = num, bucket.refill, bucket.period, true
end

-- The buckets that limit_packing.pack_buckets wrote from `position` on, and the position after them. (A table that is written with all its fields is
-- made three times faster than one that grows.)
local function read_buckets(packed, position)
  local count
  count, position = unpack_from('<I2', packed, position)
  local buckets = {}
  for i = 1, count do
    local kind, enforced, taken, ends_streams, fresh, room, refill, period, ends, id
    kind, enforced, taken, ends_streams, fresh, room, refill, period, ends, id, position = unpack_from('<BBBBBi8i8i8i8I2c0', packed, position)
    buckets[i] = {
      id = id, kind = kind, enforced = enforced == 1, taken = taken == 1, retaken = taken == 2, ends_streams = ends_streams == 1, fresh = fresh == 1,
      room = room, refill = refill, period = period, ends = ends,
    }
  end
  return buckets, position
end

-- One bucket as it is read. `taken` is 2 for one that was taken at once and is held since the server forgot it; see restore.lua.
local function pack_bucket(b, taken)
  return struct.pack('<BBBBBi8i8i8i8I2c0', b.kind, b.enforced and 1 or 0, taken, b.ends_streams and 1 or 0, b.fresh and 1 or 0,
    b.room, b.refill, b.period, b.ends, #b.id, b.id)
end

local function read_state(raw)
  if not raw then return nil end
  local kind, known, used, num, held, at, refill, period, waited = unpack_from(STATE, raw)
  return {
    kind = kind, known = known == 1, used = used, num = num, held = held, at = at, refill = refill, period = period, waited = waited, moved = false,
  }
end

local function new_state(bucket, known)
  local refill, period = 0, 0
  if bucket.kind == LEVEL then refill, period = bucket.refill, bucket.period end
  return { kind = bucket.kind, known = known, used = 0, num = 0, held = 0, at = now, refill = refill, period = period, waited = 0, moved = false }
end

local function units_at(packed, index)
  return (unpack_from('<i8', packed, index * 8 - 7))
end

-- A bucket of which something is held never expires. The others go when they cannot matter any more; see `_idle` in limits/buckets.py.
local function seconds_left(bucket, state)
  if state.kind == COUNTER then
    if bucket.ends <= 0 then return FOREVER_S end
    return math.max(60, math.min(FOREVER_S, math.ceil((bucket.ends - now) / 1000000) + KEPT_S))
  end
  if state.used == 0 and state.num == 0 then return IDLE_S end
  if state.refill <= 0 then return FOREVER_S end
  return math.min(FOREVER_S, math.ceil((state.used + 1) / state.refill * state.period / 1000000) + IDLE_S)
end

local function save(bucket, s)
  local key = prefix .. 'b:' .. bucket.id
  if s.held == 0 and (s.kind == GAUGE or not s.known) then
    call('DEL', key)
    return
  end
  local packed = struct.pack(STATE, s.kind, s.known and 1 or 0, s.used, s.num, s.held, s.at, s.refill, s.period, s.waited)
  if s.held > 0 then
    call('SET', key, packed)
  else
    call('SET', key, packed, 'EX', seconds_left(bucket, s))
  end
end

local function fits(bucket, s, asked)
  local free = bucket.room - s.held - asked
  return s.used < free or (s.used == free and s.num == 0)
end

local function whole(s)
  if s.num > 0 then return add(s.used, 1) end
  return s.used
end

local function use(s, units)
  if not s.known then return end -- it will be in what the ledger says
  if s.kind == LEVEL then
    leak(s)
    if units > 0 then s.used = add(s.used, units) end
  elseif s.kind == COUNTER then
    s.used = add(s.used, units)
  end
end

local function add_shortage(reply, index, bucket, s)
  for _, number in ipairs({ index - 1, s.used, s.num, s.held, s.at - now, s.refill, s.period, bucket.room }) do
    reply[#reply + 1] = number
  end
end

local function now_s()
  return floor(now / 1000000)
end

local function tell(bucket, s)
  if s.waited > now_s() then call('PUBLISH', channel, bucket.id) end
end
